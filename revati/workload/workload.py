"""A workload: the arrival time and the lengths of every request."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from revati.workload.errors import WorkloadError
from revati.workload.lengths import Lengths

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Requests in the order of their arrival, as an open-loop load generator sends them.

    `arrival_s`: float64 of shape (n,), seconds from the start, ascending, from 0.
    `prompt_tokens`, `output_tokens`: int64 of shape (n,), at least 1.
    """

    name: str
    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = {self.arrival_s.shape, self.prompt_tokens.shape, self.output_tokens.shape}
        if len(shapes) != 1 or self.arrival_s.ndim != 1 or not len(self.arrival_s):
            raise WorkloadError(
                f"workload {self.name!r}: {', '.join(COLUMNS)} must have one same, non-zero length"
            )
        if not np.isfinite(self.arrival_s).all() or self.arrival_s[0] < 0:
            raise WorkloadError(f"workload {self.name!r}: arrival_s must be finite and not negative")
        if (np.diff(self.arrival_s) < 0).any():
            raise WorkloadError(f"workload {self.name!r}: arrival_s must ascend")
        if self.prompt_tokens.min() < 1 or self.output_tokens.min() < 1:
            raise WorkloadError(f"workload {self.name!r}: prompts and outputs must have at least 1 token")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @classmethod
    def from_poisson(
        cls, name: str, *, request_rate_per_s: float, num_requests: int, lengths: Lengths, seed: int = 0
    ) -> "Workload":
        """Requests that arrive independently at a mean rate (exponential gaps)."""
        if not request_rate_per_s > 0:
            raise WorkloadError(
                f"request_rate_per_s must be greater than 0, got {request_rate_per_s}; "
                "for all requests at once use an offline workload"
            )
        _require_requests(num_requests)
        # One stream each: changing the rate keeps the lengths, and the other way round.
        arrivals, sizes = np.random.default_rng(seed).spawn(2)
        arrival_s = np.cumsum(arrivals.exponential(1.0 / request_rate_per_s, num_requests))
        return cls(name, arrival_s, *lengths.draw(num_requests, sizes))

    @classmethod
    def from_offline(cls, name: str, *, num_requests: int, lengths: Lengths, seed: int = 0) -> "Workload":
        """All requests arrive at t = 0."""
        _require_requests(num_requests)
        _, sizes = np.random.default_rng(seed).spawn(2)
        return cls(name, np.zeros(num_requests), *lengths.draw(num_requests, sizes))

    def with_spike(self, count: int, at_s: float, lengths: Lengths, seed: int = 0) -> "Workload":
        """These requests and `count` more that all arrive at `at_s`."""
        _require_requests(count)
        prompt_tokens, output_tokens = lengths.draw(count, np.random.default_rng(seed))
        arrival_s = np.concatenate([self.arrival_s, np.full(count, at_s)])
        order = np.argsort(arrival_s, kind="stable")
        return Workload(
            self.name,
            arrival_s[order],
            np.concatenate([self.prompt_tokens, prompt_tokens])[order],
            np.concatenate([self.output_tokens, output_tokens])[order],
        )

    @classmethod
    def from_trace(cls, path: Path, name: str | None = None) -> "Workload":
        """Read a Parquet file with the columns arrival_s, prompt_tokens, output_tokens.

        Other columns are ignored, so the request table of a run can be replayed. Rows are sorted by
        arrival (stable).
        """
        try:
            present = pq.read_schema(path).names
        except (OSError, pa.ArrowInvalid) as error:
            raise WorkloadError(f"cannot read the trace {path}: {error}") from error
        missing = [column for column in COLUMNS if column not in present]
        if missing:
            raise WorkloadError(f"trace {path} lacks {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
        table = pq.read_table(path, columns=list(COLUMNS))
        if any(table[column].null_count for column in COLUMNS):
            raise WorkloadError(f"trace {path} has empty values in {', '.join(COLUMNS)}")
        arrival_s = table["arrival_s"].to_numpy().astype(np.float64)
        order = np.argsort(arrival_s, kind="stable")
        return cls(
            name or Path(path).stem,
            arrival_s[order],
            table["prompt_tokens"].to_numpy().astype(np.int64)[order],
            table["output_tokens"].to_numpy().astype(np.int64)[order],
        )

    def to_parquet(self, path: Path) -> None:
        """Write a file that `from_trace` reads back, name included as metadata."""
        table = pa.table({column: getattr(self, column) for column in COLUMNS})
        pq.write_table(table.replace_schema_metadata({"workload": self.name}), path)


def _require_requests(num_requests: int) -> None:
    if num_requests < 1:
        raise WorkloadError(f"num_requests must be at least 1, got {num_requests}")
