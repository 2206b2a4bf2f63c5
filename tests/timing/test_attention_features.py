"""What attention's trees are told about a batch, and their answers for prompts behind cached contexts."""

from typing import Any

import numpy as np
import pytest

from revati import paths
from revati.timing import db
from revati.timing.attention import Fitted
from revati.timing.attention_features import FEATURES, GRAPH_MAX_TOKENS, BatchReader, Heads
from revati.timing.forest import Forest
from revati.timing.gpu import load_limits

LIMITS = load_limits(paths.conf_dir() / "gpu", "h200")
TILE_ROWS = BLOCK_TOKENS = 128


def prompts_share(query_lens: list[int], context_lens: list[int]) -> float:
    batch = BatchReader(Heads(40, 8, 128), LIMITS).read(
        np.array(query_lens), np.array(context_lens), GRAPH_MAX_TOKENS
    )
    return float(batch.features[FEATURES.index("prompts_share_of_blocks")])


def test_prompts_share_of_the_blocks_that_are_walked() -> None:
    assert prompts_share([1] * 8, [1000] * 8) == 0.0
    assert prompts_share([100, 200], [100, 200]) == 1.0
    tiles = 128 * 5 // TILE_ROWS  # five heads of queries for one of keys
    prompt = tiles * ((2048 + 128 - 127 / 2) / BLOCK_TOKENS + 0.5)
    decodes = 32 * (1000 / BLOCK_TOKENS + 0.5)
    found = prompts_share([1] * 32 + [128], [1000] * 32 + [2048 + 128])
    assert found == pytest.approx(prompt / (prompt + decodes))


def is_continued(row: dict[str, Any]) -> bool:
    """Whether the cache has the beginning of a prompt that runs beside decodes."""
    lens = list(zip(row["query_lens"], row["context_lens"], strict=True))
    return min(row["query_lens"]) == 1 and any(1 < new < context for new, context in lens)


def test_prompts_behind_cached_contexts_beside_decodes_are_answered_as_measured() -> None:
    main = Fitted.load(db.partition(paths.kernel_db_dir(), "h200") / "fitted" / "attention.parquet")
    assert main is not None
    forest = Forest([main.trees], len(FEATURES))
    measured = [
        row
        for row in db.read(paths.kernel_db_dir(), "h200").to_pylist()
        if row["kind"] == "attention" and is_continued(row)
    ]
    assert len(measured) > 1000
    errors = []
    for row in measured:
        heads = Heads(row["num_q_heads"], row["num_kv_heads"], row["head_dim"])
        graph_tokens = row["num_tokens"] if row["variant"] == "graph" else 0
        batch = BatchReader(heads, LIMITS, forest).read(
            np.array(row["query_lens"]), np.array(row["context_lens"]), graph_tokens
        )
        errors.append(batch.durations_us[0] / row["median_us"] - 1.0)
    weights = [row["median_us"] for row in measured]
    assert np.average(np.abs(errors), weights=weights) < 0.05
    assert abs(np.average(errors, weights=weights)) < 0.01
