"""The ledger: every finished trial, on disk before the next one is proposed.

One JSON object a line, flushed to the disk line by line. A crash in the middle of a line costs that line
only; opening the ledger again cuts it off.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from revati.search.space import Point

NAME = "ledger.jsonl"


class Ledger:
    """Rows of finished trials with the points that they tried; appends are crash-safe."""

    def __init__(self, path: Path) -> None:
        self.points: list[Point] = []
        self.rows: list[dict[str, Any]] = []
        whole = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                entry = _parse(line)
                if entry is None:
                    break
                self.points.append(entry["point"])
                self.rows.append(entry["row"])
                whole += len(line)
        self._file = path.open("ab")
        self._file.truncate(whole)

    def append(self, point: Point, row: dict[str, Any]) -> None:
        line = json.dumps({"point": point, "row": row}) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.points.append(point)
        self.rows.append(row)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry of a whole line, None for one that was cut short."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"point", "row"} <= set(entry) else None
