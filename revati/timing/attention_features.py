"""What FlashAttention-3's time depends on, from a batch's query and context lengths.

The kernel cuts each (request, head) into tiles of ``TILE_M`` query rows and walks the context in blocks of
``BLOCK_N`` tokens; long contexts are split so that all SMs have work (``prepare_varlen_num_blocks``).
``physical_us`` is a crude schedule of that work; a fitted model corrects it (``attention.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from revati.timing.gpu import GpuLimits

BLOCK_N_BITS = 7
BLOCK_N = 1 << BLOCK_N_BITS
DECODE_TILE_M = 64
TILE_M = 128
GRAPH_SPLITS = 32  # vLLM's flash_attn_max_num_splits_for_cuda_graph
MAX_SPLITS = 128
GRAPH_MAX_TOKENS = 512  # above vLLM's largest captured size FA3 chooses the splits itself
SPLIT_MARGIN = 1.1  # FA3: blocks per SM are sized for 10 % more work than there is

# What a tile costs beside its blocks, and what attention reaches of the datasheet's rates; rough on purpose.
TILE_OVERHEAD_BLOCKS = 2.0
MEMORY_SHARE = 0.80
FLOP_SHARE = 0.60
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
    "num_q_heads",
    "num_kv_heads",
    "graph",
)


@dataclass(frozen=True, slots=True)
class Heads:
    """One rank's attention heads."""

    num_q: int
    num_kv: int
    head_dim: int


def is_graph(num_tokens: int, full_graphs: bool) -> bool:
    return full_graphs and num_tokens <= GRAPH_MAX_TOKENS


class Batch(NamedTuple):
    """One step's requests; ``context_lens`` include the query tokens.

    Made and used in every engine step, so sums are taken once, and NumPy is called as rarely as possible.
    """

    query_lens: NDArray[np.int64]
    context_lens: NDArray[np.int64]
    query_tokens: int
    context_tokens: int
    max_context: int
    pairs: int  # query tokens times the context of their request, without a causal mask

    @classmethod
    def of(cls, query_lens: NDArray[np.int64], context_lens: NDArray[np.int64]) -> Batch:
        query_tokens = int(np.add.reduce(query_lens))
        pairs = int(query_lens.dot(context_lens))
        decodes = query_tokens == len(query_lens)
        context_tokens = pairs if decodes else int(np.add.reduce(context_lens))
        max_context = int(np.maximum.reduce(context_lens, initial=0))
        return cls(query_lens, context_lens, query_tokens, context_tokens, max_context, pairs)

    @property
    def decodes(self) -> bool:
        """One new token for each request."""
        return self.query_tokens == len(self.query_lens)


def parts(batch: Batch) -> list[Batch]:
    """A batch as its decodes, and as equal prompts with the work and the tokens of its prompts."""
    query_lens, context_lens = batch.query_lens, batch.context_lens
    decode = query_lens == 1
    found = []
    if decode.any():
        found.append(Batch.of(query_lens[decode], context_lens[decode]))
    prompts, contexts = query_lens[~decode], context_lens[~decode]
    tokens = int(prompts.sum())
    if tokens:
        requests = max(1, round(tokens * tokens / float(prompts.dot(prompts))))
        query = max(1, round(tokens / requests))
        before = round(float(prompts.dot(contexts - prompts)) / tokens)
        found.append(
            Batch.of(
                np.full(requests, query, dtype=np.int64), np.full(requests, query + before, dtype=np.int64)
            )
        )
    return found


def features(batch: Batch, heads: Heads, graph: bool, limits: GpuLimits) -> tuple[float, ...]:
    """One row in the order of ``FEATURES``."""
    query_lens, context_lens, query_tokens, context_tokens, max_context, _ = batch
    requests = len(query_lens)
    group = heads.num_q // heads.num_kv
    n_blocks = (context_lens + (BLOCK_N - 1)) >> BLOCK_N_BITS
    if query_tokens == requests:
        max_query, decode_share = 1, 1.0
        tile_m = DECODE_TILE_M if group <= DECODE_TILE_M else TILE_M
        m_blocks_total = float(requests * -(-group // tile_m))
        walked = float(np.add.reduce(n_blocks)) * -(-group // tile_m)
        pairs = float(context_tokens)
    else:
        max_query = int(np.maximum.reduce(query_lens))
        decode_share = float(np.count_nonzero(query_lens == 1)) / requests
        tile_m = DECODE_TILE_M if max_query * group <= DECODE_TILE_M else TILE_M
        m_blocks = (query_lens * group + (tile_m - 1)) // tile_m
        m_blocks_total = float(np.add.reduce(m_blocks))
        seen = context_lens - (query_lens - 1) * 0.5  # by the average query token
        pairs = float(np.dot(query_lens, seen))
        walked = float(np.dot(m_blocks, np.maximum(seen * (1.0 / BLOCK_N) + 0.5, 1.0)))
    work_blocks = walked * heads.num_kv
    blocks_per_sm = max(1, math.ceil(work_blocks * SPLIT_MARGIN / limits.sm_count))
    most = GRAPH_SPLITS if graph else MAX_SPLITS
    longest_blocks = -(-max_context // BLOCK_N)
    splits = float(min(most, -(-longest_blocks // blocks_per_sm)))
    tiles = float(requests)
    if splits > 1:
        wanted = (n_blocks + (blocks_per_sm - 1)) // blocks_per_sm
        tiles = float(np.add.reduce(np.minimum(most, wanted)))
    tiles = max(tiles, m_blocks_total) * heads.num_kv

    kv_bytes = 4.0 * context_tokens * heads.num_kv * heads.head_dim
    qo_bytes = 4.0 * query_tokens * heads.num_q * heads.head_dim
    memory_us = (kv_bytes + qo_bytes) / (limits.memory_bytes_per_us * MEMORY_SHARE)
    compute_us = 4.0 * pairs * heads.num_q * heads.head_dim / (limits.bf16_flop_per_us * FLOP_SHARE)
    per_sm = (work_blocks + tiles * TILE_OVERHEAD_BLOCKS) / limits.sm_count
    # One SM alone streams its share of the bandwidth several times over.
    chain_blocks = max(min(blocks_per_sm, longest_blocks) + TILE_OVERHEAD_BLOCKS, per_sm)
    block_us = BLOCK_N * 4.0 * heads.head_dim * limits.sm_count / limits.memory_bytes_per_us
    physical_us = LAUNCH_US + max(memory_us, compute_us, 0.5 * chain_blocks * block_us)

    waves = tiles / limits.sm_count
    return (
        math.log(physical_us),
        math.log(memory_us),
        math.log(compute_us),
        math.log(requests),
        math.log(context_tokens),
        math.log(query_tokens),
        math.log(context_tokens / requests),
        max_context * requests / context_tokens,
        math.log(max_query),
        math.log(waves),
        waves / math.ceil(waves),
        math.log(blocks_per_sm),
        splits,
        decode_share,
        float(heads.num_q),
        float(heads.num_kv),
        1.0 if graph else 0.0,
    )
