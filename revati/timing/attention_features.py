"""What FlashAttention-3's time depends on, from a batch's query and context lengths.

Computed by native code (``native/timing/attention.cpp`` has the physics), because every engine step asks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revati.timing.estimate import RankShape
from revati.timing.forest import Forest
from revati.timing.gpu import GpuLimits
from revati.timing.native import Batch, Device, library

GRAPH_MAX_TOKENS = 512  # above vLLM's largest captured size FA3 chooses the splits itself
LAUNCH_US = 6.0

FEATURES = (
    "log_physical_us",
    "log_memory_us",
    "log_compute_us",
    "log_requests",
    "log_context_tokens",
    "log_query_tokens",
    "log_mean_context",
    "max_over_mean_context",
    "log_max_query",
    "log_tiles_per_sm",
    "wave_fill",
    "log_blocks_per_sm",
    "splits",
    "decode_share",
    "prompts_share_of_blocks",
    "num_q_heads",
    "num_kv_heads",
    "log_group",
    "log_walked_over_context",
    "log_longest_over_share_of_sm",
    "log_min_over_mean_context",
    "graph",
)


@dataclass(frozen=True, order=True, slots=True)
class Heads:
    """One rank's attention heads."""

    num_q: int
    num_kv: int
    head_dim: int

    @classmethod
    def of_rank(cls, shape: RankShape) -> Heads:
        return cls(shape.num_q_heads, shape.num_kv_heads, shape.head_dim)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Heads:
        """Those of an attention batch in a kernel database."""
        return cls(row["num_q_heads"], row["num_kv_heads"], row["head_dim"])


class BatchReader:
    """Describes batches of one rank's heads on one GPU.

    Args:
        forest: the main and the combine kernel's trees (or the first alone); their durations come with each
            batch.
    """

    def __init__(self, heads: Heads, limits: GpuLimits, forest: Forest | None = None) -> None:
        self._device = Device(
            heads.num_q,
            heads.num_kv,
            heads.head_dim,
            limits.sm_count,
            limits.memory_bytes_per_us,
            limits.bf16_flop_per_us,
            LAUNCH_US,
        )
        self._device_address = ctypes.addressof(self._device)
        self._forest = forest
        self._forest_address = ctypes.addressof(forest.tables) if forest else None
        self._make_room(256)

    def _make_room(self, requests: int) -> None:
        # Lengths are copied to where native code reads them: asking two arrays for their addresses took
        # a quarter of an answer's time.
        self._lengths = np.zeros((2, requests), dtype=np.int64)
        self._query_lens, self._context_lens = self._lengths
        self._addresses = self._query_lens.ctypes.data, self._context_lens.ctypes.data

    def read(
        self, query_lens: NDArray[np.int64], context_lens: NDArray[np.int64], graph_tokens: int
    ) -> Batch:
        """A batch by its lengths, of shape (requests,).

        Args:
            graph_tokens: FA3 is told how often to split batches of up to so many tokens.
        """
        requests = len(query_lens)
        if requests > len(self._query_lens):
            self._make_room(2 * requests)
        self._query_lens[:requests] = query_lens
        self._context_lens[:requests] = context_lens
        batch = Batch()
        library.revati_describe_batch(
            self._device_address,
            self._forest_address,
            *self._addresses,
            requests,
            graph_tokens,
            ctypes.addressof(batch),
        )
        return batch


def parts(
    query_lens: NDArray[np.int64], context_lens: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """A batch as its decodes, and as equal prompts with the work and the tokens of its prompts."""
    decode = query_lens == 1
    found = []
    if decode.any():
        found.append((query_lens[decode], context_lens[decode]))
    prompts, contexts = query_lens[~decode], context_lens[~decode]
    tokens = int(prompts.sum())
    if tokens:
        requests = max(1, round(tokens * tokens / float(prompts.dot(prompts))))
        query = max(1, round(tokens / requests))
        before = round(float(prompts.dot(contexts - prompts)) / tokens)
        found.append(
            (
                np.full(requests, query, dtype=np.int64),
                np.full(requests, query + before, dtype=np.int64),
            )
        )
    return found
