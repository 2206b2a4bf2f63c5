"""Boosted regression trees without scikit-learn: fitted offline, read as arrays, evaluated with NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Trees:
    """All trees' nodes in one array; a leaf is its own child, so every walk takes ``depth`` steps."""

    roots: NDArray[np.intp]
    feature: NDArray[np.intp]
    threshold: NDArray[np.float64]
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    value: NDArray[np.float64]
    base: float
    depth: int

    def predict(self, row: NDArray[np.float64]) -> float:
        """The sum over trees for one row of features."""
        # Every node's answer at once is cheaper than gathering the nodes that are reached, level by level.
        step = np.where(row.take(self.feature) <= self.threshold, self.left, self.right)
        node = self.roots
        for _ in range(self.depth):
            node = step.take(node)
        return self.base + float(np.add.reduce(self.value.take(node)))

    def save(self, path: Path, facts: dict[str, str]) -> None:
        """``facts`` say how the trees were fitted; they go into the file's metadata."""
        columns = {
            "feature": self.feature,
            "threshold": self.threshold,
            "left": self.left,
            "right": self.right,
            "value": self.value,
            "is_root": np.isin(np.arange(len(self.feature)), self.roots),
        }
        metadata = facts | {"base": repr(self.base), "depth": str(self.depth)}
        table = pa.table(columns).replace_schema_metadata(metadata)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> tuple[Trees, dict[str, str]]:
        table = pq.read_table(path, memory_map=True, partitioning=None)
        facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        column = {name: table[name].to_numpy() for name in table.column_names}
        trees = cls(
            roots=np.flatnonzero(column["is_root"]).astype(np.intp),
            feature=column["feature"].astype(np.intp),
            threshold=column["threshold"].astype(np.float64),
            left=column["left"].astype(np.intp),
            right=column["right"].astype(np.intp),
            value=column["value"].astype(np.float64),
            base=float(facts["base"]),
            depth=int(facts["depth"]),
        )
        return trees, facts
