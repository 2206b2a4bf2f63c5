"""FlashAttention 3 over a paged KV cache, called as vLLM's FlashAttention backend calls it.

Two dispatch modes: ``graph`` (at most 512 tokens under full CUDA graphs: up to 32 splits, the upper bound
that vLLM preallocates for) and ``eager`` (FA3's own heuristic). Each batch's blocks are spread over a
cache far larger than L2, since in serving the other layers' caches lie in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from revati.profile.attention_batches import BLOCK_TOKENS, MAX_BATCH_CONTEXT, Batch, sharing_batches
from revati.profile.parts import Row, summary
from revati.profile.recorder import GpuEvent, between_calls, record, split_at_marks
from revati.timing.attention_features import Heads
from revati.timing.families import ATTENTION_COMBINE, ATTENTION_MAIN
from revati.timing.schema import ATTENTION_SHARING

CACHE_BYTES = 24 * 2**30
GRAPH_SPLITS = 32
GRAPH_MAX_CONTEXT = 8192
WARMUPS = 1
REPEATS = 5
BATCHES_PER_RECORDING = 100


class Cache:
    """A paged KV cache of one layer: (blocks, kv heads, 16, 2 · head_dim), and random free blocks."""

    def __init__(self, heads: Heads) -> None:
        block_bytes = heads.num_kv * BLOCK_TOKENS * 2 * heads.head_dim * 2
        needed = 2 * MAX_BATCH_CONTEXT // BLOCK_TOKENS + 8192
        blocks = max(min(CACHE_BYTES // block_bytes, 4 * needed), needed)
        self.storage = torch.empty(
            blocks, heads.num_kv, BLOCK_TOKENS, 2 * heads.head_dim, dtype=torch.bfloat16, device="cuda"
        )
        flat = self.storage.view(-1)
        for at in range(0, flat.numel(), 2**28):
            flat[at : at + 2**28].normal_()
        self.key, self.value = self.storage.transpose(1, 2).split(heads.head_dim, dim=-1)
        if heads.num_kv == 1:
            self.key, self.value = _without_odd_strides(self.key), _without_odd_strides(self.value)
        self._order = torch.randperm(blocks, dtype=torch.int32)
        self._at = 0

    def block_table(
        self, context_lens: tuple[int, ...], groups: int = 0, shared_tokens: int = 0
    ) -> torch.Tensor:
        """Blocks that the previous calls did not use, (requests, most blocks of a request); see `Batch`."""
        width = max(-(-context // BLOCK_TOKENS) for context in context_lens)
        used = [-(-context // BLOCK_TOKENS) for context in context_lens]
        total = sum(used)
        if self._at + total > self._order.numel():
            self._at = 0
        table = torch.zeros(len(context_lens), width, dtype=torch.int32)
        chosen = self._order[self._at : self._at + total]
        self._at += total
        at = 0
        for row, count in enumerate(used):
            table[row, :count] = chosen[at : at + count]
            at += count
        shared = shared_tokens // BLOCK_TOKENS
        for group in range(groups):  # an engine takes a prompt's blocks from its free ones in a row
            first = int(torch.randint(self._order.numel() - shared, ()))
            table[group::groups, :shared] = torch.arange(first, first + shared, dtype=torch.int32)
        return table.cuda()


def _without_odd_strides(tensor: torch.Tensor) -> torch.Tensor:
    from vllm.utils.torch_utils import canonicalize_singleton_dim_strides

    fixed: torch.Tensor = canonicalize_singleton_dim_strides(tensor)
    return fixed


@dataclass(slots=True)
class Call:
    """A batch's tensors, ready for one call of the kernel after another."""

    batch: Batch
    query: torch.Tensor
    written: torch.Tensor
    out: torch.Tensor
    tables: list[torch.Tensor]
    starts: torch.Tensor
    used: torch.Tensor
    metadata: torch.Tensor
    max_context: int

    def run(self, cache: Cache, repeat: int) -> None:
        """One measured call: its input has just been written, other data fills L2 after it."""
        self.query.copy_(self.written)
        self.launch(cache, repeat)
        between_calls()

    def launch(self, cache: Cache, repeat: int) -> None:
        from vllm.vllm_flash_attn import flash_attn_varlen_func

        flash_attn_varlen_func(
            q=self.query,
            k=cache.key,
            v=cache.value,
            out=self.out,
            cu_seqlens_q=self.starts,
            max_seqlen_q=max(self.batch.query_lens),
            seqused_k=self.used,
            max_seqlen_k=self.max_context,
            softmax_scale=self.query.shape[-1] ** -0.5,
            causal=True,
            block_table=self.tables[repeat],
            scheduler_metadata=self.metadata,
            num_splits=GRAPH_SPLITS if self.batch.mode == "graph" else 0,
            fa_version=3,
        )


def prepare(batch: Batch, heads: Heads, cache: Cache) -> Call:
    from vllm.vllm_flash_attn import get_scheduler_metadata

    tokens = sum(batch.query_lens)
    written = torch.randn(tokens, heads.num_q, heads.head_dim, dtype=torch.bfloat16, device="cuda")
    starts = torch.zeros(len(batch.query_lens) + 1, dtype=torch.int32)
    starts[1:] = torch.tensor(batch.query_lens).cumsum(0)
    used = torch.tensor(batch.context_lens, dtype=torch.int32, device="cuda")
    starts = starts.cuda()
    max_context = max(batch.context_lens)
    metadata = get_scheduler_metadata(
        batch_size=len(batch.query_lens),
        max_seqlen_q=max(batch.query_lens),
        max_seqlen_k=max_context,
        num_heads_q=heads.num_q,
        num_heads_kv=heads.num_kv,
        headdim=heads.head_dim,
        cache_seqlens=used,
        qkv_dtype=torch.bfloat16,
        cu_seqlens_q=starts,
        page_size=BLOCK_TOKENS,
        causal=True,
        window_size=(-1, -1),
        num_splits=GRAPH_SPLITS if batch.mode == "graph" else 0,
    )
    return Call(
        batch=batch,
        query=torch.empty_like(written),
        written=written,
        out=torch.empty_like(written),
        tables=[
            cache.block_table(batch.context_lens, batch.groups, batch.shared_tokens)
            for _ in range(WARMUPS + REPEATS)
        ],
        starts=starts,
        used=used,
        metadata=metadata,
        # A captured decode graph keeps the longest context that it may meet.
        max_context=GRAPH_MAX_CONTEXT if _is_captured(batch) else max_context,
    )


def _is_captured(batch: Batch) -> bool:
    return batch.mode == "graph" and max(batch.query_lens) == 1


def measure(heads: Heads, batches: list[Batch]) -> list[Row]:
    """Rows of kind attention, and of kind combine where the splits were combined."""
    cache = Cache(heads)
    rows: list[Row] = []
    for at in range(0, len(batches), BATCHES_PER_RECORDING):
        chosen = batches[at : at + BATCHES_PER_RECORDING]
        calls = [prepare(batch, heads, cache) for batch in chosen]

        def work(calls: list[Call] = calls) -> None:
            for call in calls:
                for repeat in range(WARMUPS + REPEATS):
                    call.run(cache, repeat)  # each time with other blocks of the cache

        groups = split_at_marks(record(work), len(chosen) * (WARMUPS + REPEATS))
        for i, batch in enumerate(chosen):
            mine = groups[i * (WARMUPS + REPEATS) + WARMUPS : (i + 1) * (WARMUPS + REPEATS)]
            rows += _rows(batch, heads, mine)
        del calls
    return rows


def measure_sharing(heads: Heads) -> list[Row]:
    """Rows of the main kernel for `sharing_batches`; ``n``: groups, ``k``: tokens that each has in common."""
    batches = list(sharing_batches())
    rows = (row for row in measure(heads, batches) if row["kind"] == "attention")
    return [
        row | {"kind": ATTENTION_SHARING, "n": batch.groups, "k": batch.shared_tokens}
        for row, batch in zip(rows, batches, strict=True)
    ]


def _rows(batch: Batch, heads: Heads, groups: list[list[GpuEvent]]) -> list[Row]:
    rows: list[Row] = []
    for kind, pattern in (("attention", ATTENTION_MAIN), ("combine", ATTENTION_COMBINE)):
        found = [event for group in groups for event in group if pattern.search(event.name)]
        if not found:
            continue
        rows.append(
            {
                "kind": kind,
                "kernel": "FlashAttnFwdSm90" if kind == "attention" else "FlashAttnFwdCombine",
                "variant": batch.mode,
                "dtype": "bfloat16",
                "grid_x": found[0].grid[0],
                "grid_y": found[0].grid[1],
                "grid_z": found[0].grid[2],
                "block_x": found[0].block[0],
                "shared_bytes": found[0].shared_bytes,
                "num_tokens": sum(batch.query_lens),
                "num_reqs": len(batch.query_lens),
                "num_q_heads": heads.num_q,
                "num_kv_heads": heads.num_kv,
                "head_dim": heads.head_dim,
                "query_lens": list(batch.query_lens),
                "context_lens": list(batch.context_lens),
                "method": "cupti",
                **summary([event.duration_us for event in found]),
            }
        )
    return rows
