"""The schema of ``kernel_db/``: one row is one measured kernel (or copy, or collective).

``kernel_db/gpu=<name>/<family>.parquet``; the GPU is the partition. A column that does not apply to a
row is null. The version is in the Parquet metadata and is checked on read: a reader never guesses.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

SCHEMA_VERSION = 1
SGLANG_SHORTER = "sglang_shorter"
ATTENTION_SHARING = "attention_sharing"
TIMED = "timed"  # the variant of gaps from graphs that were timed as a whole, without tracing
SCALED = "scaled"  # the method of a row that was derived from another GPU's measurement
VERSION_KEY = b"revati.kernel_db.schema_version"

KINDS = (
    "gemm",
    "attention",  # FlashAttention forward, without its combine kernel
    "combine",  # FlashAttention's reduction over splits
    "attention_schedule",
    "norm",
    "embedding",
    "rope",
    "activation",
    "quant",  # to FP8, a norm or an activation fused in or not
    "kv_write",
    "elementwise",
    "sampling",
    "input",
    "copy",
    "memset",
    "collective",
    "crowded",  # a product alone, and beside a collective that waits for others
    "gap",  # idle time of the GPU between consecutive kernels
    ATTENTION_SHARING,  # where contexts begin alike: n groups with k tokens in common; and where not
    SGLANG_SHORTER,  # by how much its attention takes less than vLLM's of the same batch
)

_category = pa.dictionary(pa.int32(), pa.string())

FIELDS: list[pa.Field] = [
    pa.field("kind", _category, nullable=False),
    pa.field("kernel", _category, nullable=False),  # demangled name, or the operation's name
    pa.field("variant", _category),  # e.g. the dispatch mode, a copy's direction, a collective's algorithm
    pa.field("dtype", _category),
    # launch
    pa.field("grid_x", pa.int32()),
    pa.field("grid_y", pa.int32()),
    pa.field("grid_z", pa.int32()),
    pa.field("block_x", pa.int32()),
    pa.field("shared_bytes", pa.int32()),
    # features
    pa.field("m", pa.int32()),
    pa.field("n", pa.int32()),
    pa.field("k", pa.int32()),
    pa.field("num_tokens", pa.int32()),
    pa.field("num_reqs", pa.int32()),
    pa.field("width", pa.int32()),  # elements per token that the kernel works on
    pa.field("num_q_heads", pa.int32()),
    pa.field("num_kv_heads", pa.int32()),
    pa.field("head_dim", pa.int32()),
    pa.field("query_lens", pa.list_(pa.int32())),
    pa.field("context_lens", pa.list_(pa.int32())),  # including the query tokens
    pa.field("nbytes", pa.int64()),
    pa.field("ranks", pa.int32()),
    # measurement
    pa.field("count", pa.int32(), nullable=False),
    pa.field("median_us", pa.float64(), nullable=False),
    pa.field("p10_us", pa.float64()),
    pa.field("p90_us", pa.float64()),
    # provenance
    pa.field("method", _category, nullable=False),  # 'cupti' | 'events' | 'aiconfigurator' | SCALED
    pa.field("measured_at", _category, nullable=False),  # ISO 8601, UTC
    pa.field("driver", _category, nullable=False),
    pa.field("libraries", _category, nullable=False),  # 'cuda=13.0 torch=2.11.0 …'
]

SCHEMA = pa.schema(FIELDS, metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})


class SchemaError(ValueError):
    """A kernel_db file that this version cannot read."""


def check(schema: pa.Schema, path: Path) -> None:
    """Refuse a file whose version or columns differ from ours.

    Raises:
        SchemaError: says which file, what it has and what is needed.
    """
    found = (schema.metadata or {}).get(VERSION_KEY)
    if found is None or found.decode() != str(SCHEMA_VERSION):
        shown = found.decode() if found is not None else "none"
        raise SchemaError(f"{path}: kernel_db schema version {shown}, this Revati reads {SCHEMA_VERSION}")
    missing = [f.name for f in FIELDS if f.name not in schema.names]
    if missing:
        raise SchemaError(f"{path}: columns missing: {', '.join(missing)}")
    for f in FIELDS:
        if schema.field(f.name).type != f.type:
            raise SchemaError(f"{path}: column {f.name} is {schema.field(f.name).type}, expected {f.type}")


def rows_to_table(rows: list[dict[str, object]]) -> pa.Table:
    """Rows as dicts (absent keys are null) to a table of the schema.

    Raises:
        SchemaError: a row has a key that is no column, or an unknown kind.
    """
    names = {f.name for f in FIELDS}
    for row in rows:
        unknown = set(row) - names
        if unknown:
            raise SchemaError(f"no such column: {', '.join(sorted(unknown))}")
        if row.get("kind") not in KINDS:
            raise SchemaError(f"unknown kind {row.get('kind')!r}; known: {', '.join(KINDS)}")
    columns = [
        pa.array([row.get(f.name) for row in rows], type=_storage(f.type)).cast(f.type) for f in FIELDS
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
