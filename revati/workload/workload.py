"""A workload: the arrival time, the lengths and the common parts of every request."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from revati.workload.errors import WorkloadError
from revati.workload.lengths import Lengths
from revati.workload.sharing import NONE, Sessions, SharedPrefixes, Sharing

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
SHARING_COLUMNS = tuple(field.name for field in fields(Sharing))
SENT_COLUMN = "submitted_s"


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Requests in the order of their arrival, as an open-loop load generator sends them.

    `arrival_s`: float64 of shape (n,), seconds from the start, ascending, from 0. A session's later turns
    arrive when the answer before has come; theirs is the earliest possible time.
    `prompt_tokens`, `output_tokens`: int64 of shape (n,), at least 1.
    `sharing`: what prompts have in common; None: nothing.
    """

    name: str
    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    sharing: Sharing | None = None

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
        if self.sharing is not None:
            self.sharing.check(self.prompt_tokens, self.output_tokens)

    def __len__(self) -> int:
        return len(self.arrival_s)

    @classmethod
    def from_poisson(
        cls,
        name: str,
        *,
        request_rate_per_s: float,
        num_requests: int,
        lengths: Lengths,
        prefixes: SharedPrefixes | None = None,
        sessions: Sessions | None = None,
        seed: int = 0,
    ) -> "Workload":
        """Requests, or sessions, that arrive independently at a mean rate of requests (exponential gaps)."""
        if not request_rate_per_s > 0:
            raise WorkloadError(
                f"request_rate_per_s must be greater than 0, got {request_rate_per_s}; "
                "for all requests at once use an offline workload"
            )
        return cls._drawn(name, 1.0 / request_rate_per_s, num_requests, lengths, prefixes, sessions, seed)

    @classmethod
    def from_offline(
        cls,
        name: str,
        *,
        num_requests: int,
        lengths: Lengths,
        prefixes: SharedPrefixes | None = None,
        sessions: Sessions | None = None,
        seed: int = 0,
    ) -> "Workload":
        """All requests arrive at t = 0, those of sessions after one another."""
        return cls._drawn(name, 0.0, num_requests, lengths, prefixes, sessions, seed)

    @classmethod
    def _drawn(
        cls,
        name: str,
        mean_gap_s: float,
        num_requests: int,
        lengths: Lengths,
        prefixes: SharedPrefixes | None,
        sessions: Sessions | None,
        seed: int,
    ) -> "Workload":
        if num_requests < 1:
            raise WorkloadError(f"num_requests must be at least 1, got {num_requests}")
        # One stream each: changing the rate keeps the lengths, and the other way round.
        arrivals, sizes, groups, pauses = np.random.default_rng(seed).spawn(4)
        prompt, output = lengths.draw(num_requests, sizes)
        if prefixes is None and sessions is None:
            return cls(name, _cumulated(mean_gap_s, num_requests, arrivals), prompt, output)
        prefix = prefixes.tokens if prefixes else 0
        session, think_s = np.full(num_requests, NONE, np.int64), np.zeros(num_requests)
        unit = np.arange(num_requests)  # what arrives by itself: a request, or a session
        if sessions is None:
            prompt = prompt + prefix
        else:
            session, prompt = sessions.assign(prompt, output, prefix)
            unit, mean_gap_s = session, mean_gap_s * sessions.turns
            think_s = sessions.think(num_requests, pauses)
            think_s[np.flatnonzero(np.diff(session, prepend=NONE))] = 0  # first turns
        count = int(unit[-1]) + 1
        arrival_s = _cumulated(mean_gap_s, count, arrivals)[unit] + _since_first_turn(think_s, session)
        group = prefixes.draw(count, groups)[unit] if prefixes else np.full(num_requests, NONE, np.int64)
        tokens = np.where(group == NONE, 0, prefix)
        order = np.argsort(arrival_s, kind="stable")
        sharing = Sharing(group[order], tokens[order], session[order], think_s[order])
        return cls(name, arrival_s[order], prompt[order], output[order], sharing)

    def first(self, count: int) -> "Workload":
        """The ``count`` requests that arrive first."""
        parts = {column: getattr(self, column)[:count] for column in COLUMNS}
        if self.sharing is not None:
            columns = {column: getattr(self.sharing, column)[:count] for column in SHARING_COLUMNS}
            parts["sharing"] = Sharing(**columns)
        return replace(self, **parts)

    def with_spike(self, count: int, at_s: float, lengths: Lengths, seed: int = 0) -> "Workload":
        """These requests and `count` more that all arrive at `at_s`."""
        if count < 1 or self.sharing is not None:
            raise WorkloadError(
                f"a spike needs at least 1 request and a workload without sharing, got {count}"
            )
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

        The columns of `Sharing` are read if they are all there. Others are ignored, so the request table
        of a run can be replayed. Rows are sorted by arrival; of what arrived at once, what was sent first
        (submitted_s, if it is there) comes first, else they stay in order.
        """
        try:
            present = pq.read_schema(path).names
        except (OSError, pa.ArrowInvalid) as error:
            raise WorkloadError(f"cannot read the trace {path}: {error}") from error
        missing = [column for column in COLUMNS if column not in present]
        if missing:
            raise WorkloadError(f"trace {path} lacks {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
        shared = [column for column in SHARING_COLUMNS if column in present]
        if shared and len(shared) < len(SHARING_COLUMNS):
            raise WorkloadError(
                f"trace {path} has {', '.join(shared)}, but not all of {', '.join(SHARING_COLUMNS)}"
            )
        sent = [SENT_COLUMN] if SENT_COLUMN in present else []
        table = pq.read_table(path, columns=[*COLUMNS, *shared, *sent])
        if any(table[column].null_count for column in (*COLUMNS, *shared)):
            raise WorkloadError(f"trace {path} has empty values in {', '.join(table.column_names)}")
        arrival_s = table["arrival_s"].to_numpy().astype(np.float64)
        order = np.lexsort([*(table[column].to_numpy() for column in sent), arrival_s])

        def sorted_column(column: str) -> npt.NDArray[np.int64]:
            return np.asarray(table[column].to_numpy().astype(np.int64)[order])

        sharing = None
        if shared:
            sharing = Sharing(
                prefix_group=sorted_column("prefix_group"),
                prefix_tokens=sorted_column("prefix_tokens"),
                session=sorted_column("session"),
                think_s=table["think_s"].to_numpy().astype(np.float64)[order],
            )
        return cls(
            name or Path(path).stem,
            arrival_s[order],
            sorted_column("prompt_tokens"),
            sorted_column("output_tokens"),
            sharing,
        )

    def to_parquet(self, path: Path) -> None:
        """Write a file that `from_trace` reads back, name included as metadata."""
        table = pa.table({**{column: getattr(self, column) for column in COLUMNS}, **self.sharing_columns()})
        pq.write_table(table.replace_schema_metadata({"workload": self.name}), path)

    def sharing_columns(self) -> dict[str, npt.NDArray[np.generic]]:
        """The columns of a trace that say what prompts share; none if they share nothing."""
        return {name: getattr(self.sharing, name) for name in SHARING_COLUMNS} if self.sharing else {}


def _cumulated(mean_gap_s: float, count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return np.cumsum(rng.exponential(mean_gap_s, count)) if mean_gap_s else np.zeros(count)


def _since_first_turn(
    think_s: npt.NDArray[np.float64], session: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Sum of the pauses since a session's first turn; sessions lie one after the other."""
    total = np.cumsum(think_s)
    first = np.flatnonzero(np.diff(session, prepend=NONE - 1))
    return np.asarray(total - np.repeat(total[first], np.diff(np.append(first, len(session)))))
