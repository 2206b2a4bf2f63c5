"""Reading and writing ``kernel_db/``: Parquet files, memory-mapped, one folder per GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from revati.timing.gpu import UnknownGpuError
from revati.timing.schema import SCHEMA, check


def known_gpus(db_dir: Path) -> list[str]:
    return sorted(p.name.removeprefix("gpu=") for p in db_dir.glob("gpu=*") if p.is_dir())


def partition(db_dir: Path, gpu: str) -> Path:
    """The folder of one GPU's measurements.

    Raises:
        UnknownGpuError: names the GPUs that the database has.
    """
    known = known_gpus(db_dir)
    if gpu not in known:
        raise UnknownGpuError(f"GPU {gpu!r} is not in {db_dir}; known: {', '.join(known) or 'none'}")
    return db_dir / f"gpu={gpu}"


def read(db_dir: Path, gpu: str) -> pa.Table:
    """All measurements of one GPU.

    Raises:
        UnknownGpuError: the database has no such GPU.
        SchemaError: a file has another schema version.
    """
    tables = []
    for path in sorted(partition(db_dir, gpu).glob("*.parquet")):
        schema = pq.read_schema(path, memory_map=True)
        check(schema, path)
        tables.append(pq.read_table(path, memory_map=True, schema=SCHEMA, partitioning=None))
    if not tables:
        return SCHEMA.empty_table()
    return pa.concat_tables(tables).unify_dictionaries()


def rows(table: pa.Table, columns: list[str], **equal: object) -> list[dict[str, Any]]:
    """Some columns of the rows whose columns equal the given values (a list: any of them)."""
    for name, wanted in equal.items():
        values = pa.array(wanted if isinstance(wanted, list) else [wanted])
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
        table = table.filter(pc.is_in(column, value_set=values))
    found: list[dict[str, Any]] = table.select(columns).to_pylist()
    return found


def write(table: pa.Table, path: Path) -> None:
    """Write atomically: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    pq.write_table(table, partial, compression="zstd", version="2.6")
    partial.replace(path)
