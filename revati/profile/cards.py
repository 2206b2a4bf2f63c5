"""Join what several cards of one GPU model measured, so that answers are a typical card's.

``python -m revati.profile.cards gpu=NAME out=DIR DATABASE…`` joins the databases' files of each family into
one. Cards of a model differ by a few percent; of each kernel the median card is kept, with its repeats'
spread.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from revati.timing import db
from revati.timing.schema import FIELDS, rows_to_table

Row = dict[str, Any]

TIMES = ("median_us", "p10_us", "p90_us")
# What says where a row comes from; all the other columns say what was measured.
PROVENANCE = ("measured_at", "driver", "libraries")
USAGE = "usage: python -m revati.profile.cards gpu=NAME out=DIR DATABASE…"
_IDENTITY = tuple(f.name for f in FIELDS if f.name not in (*TIMES, *PROVENANCE, "count"))


def median_card(cards: Sequence[Sequence[Row]]) -> list[Row]:
    """One row for each kernel that any card measured.

    Args:
        cards: rows of the schema by card; what one card measured twice is averaged first.

    Returns rows in the order in which kernels first appear; times are medians over cards, the count is of one
    card's repeats, provenance the last card's.
    """
    measured: dict[tuple[object, ...], list[Row]] = {}
    for rows in cards:
        own: dict[tuple[object, ...], list[Row]] = {}
        for row in rows:
            own.setdefault(_identity(row), []).append(row)
        for key, repeated in own.items():
            measured.setdefault(key, []).append(_joined(repeated, statistics.fmean))
    return [_joined(rows, statistics.median) for rows in measured.values()]


def _identity(row: Row) -> tuple[object, ...]:
    values = (row.get(name) for name in _IDENTITY)
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _joined(rows: Sequence[Row], middle: Callable[[list[float]], float]) -> Row:
    if len(rows) == 1:
        return rows[0]
    times = {name: [row[name] for row in rows if row[name] is not None] for name in TIMES}
    count = round(statistics.median(row["count"] for row in rows))
    return (
        rows[-1]
        | {"count": count}
        | {name: float(middle(found)) if found else None for name, found in times.items()}
    )


def main(arguments: list[str]) -> int:
    named = dict(argument.split("=", 1) for argument in arguments if argument.startswith(("gpu=", "out=")))
    databases = [Path(argument) for argument in arguments if not argument.startswith(("gpu=", "out="))]
    if set(named) != {"gpu", "out"} or not databases:
        print(USAGE, file=sys.stderr)
        return 2
    folders = [db.partition(one, named["gpu"]) for one in databases]
    into = Path(named["out"]) / f"gpu={named['gpu']}"
    for name in sorted({path.name for folder in folders for path in folder.glob("*.parquet")}):
        tables = [
            pq.read_table(folder / name, partitioning=None) for folder in folders if (folder / name).exists()
        ]
        rows = median_card([table.to_pylist() for table in tables])
        db.write(rows_to_table(rows), into / name)
        print(
            f"{name}: {sum(table.num_rows for table in tables)} rows of {len(tables)} cards, {len(rows)} left"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
