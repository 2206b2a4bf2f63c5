"""Small kernel databases, written by tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from revati.timing import RankShape, db, schema

SHAPE = RankShape(
    hidden=512, intermediate=1024, num_q_heads=4, num_kv_heads=2, head_dim=128, vocab=1000, num_layers=2
)
LLAMA7B = RankShape(
    hidden=4096,
    intermediate=11008,
    num_q_heads=32,
    num_kv_heads=32,
    head_dim=128,
    vocab=32000,
    num_layers=32,
)
PROVENANCE = {"method": "cupti", "measured_at": "2026-11-20T00:00Z", "driver": "1", "libraries": "x=1"}
LAUNCH = {"grid_y": 1, "grid_z": 1, "block_x": 128, "shared_bytes": 0}


def row(**columns: Any) -> dict[str, Any]:
    return PROVENANCE | {"count": 3} | columns


def write(db_dir: Path, rows: list[dict[str, Any]], gpu: str = "h200") -> None:
    db.write(schema.rows_to_table(rows), db_dir / f"gpu={gpu}" / "all.parquet")
