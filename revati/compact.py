"""Small Parquet files for tables of requests and steps, so that many runs fit into a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TOKEN_TIMES = "token_times_us"


def without_token_times(requests: pa.Table) -> pa.Table:
    """A row a request with its latencies, the bulky list of token times empty."""
    index = requests.column_names.index(TOKEN_TIMES)
    empty = pa.array([[]] * requests.num_rows, requests.schema.field(index).type)
    return requests.set_column(index, TOKEN_TIMES, empty)


def write_compact(table: pa.Table, path: Path) -> None:
    """Write a table without loss: integers (also in lists) as differences, floats by byte, zstd over all."""
    encodings: dict[str, Any] = {}
    for column in table.schema:
        if pa.types.is_list(column.type):
            encodings[f"{column.name}.list.element"] = "DELTA_BINARY_PACKED"
        elif pa.types.is_floating(column.type):
            encodings[column.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(column.type):
            encodings[column.name] = "DELTA_BINARY_PACKED"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.replace_schema_metadata(None),
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        column_encoding=encodings,
    )
