"""vLLM's ``reshape_and_cache_flash``: new keys and values into the paged cache."""

from __future__ import annotations

import torch

from revati.profile.attention import Cache
from revati.profile.attention_batches import BLOCK_TOKENS
from revati.profile.parts import Row, summary
from revati.profile.recorder import between_calls, record, split_at_marks
from revati.timing.attention_features import Heads

TOKENS = (
    *(1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 768),
    *(1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384),
)
REPEATS = 5


def measure(heads: Heads) -> list[Row]:
    """Keys and values are slices of the fused qkv output, as the engine passes them."""
    from vllm._custom_ops import reshape_and_cache_flash

    cache = Cache(heads)
    q_width, kv_width = heads.num_q * heads.head_dim, heads.num_kv * heads.head_dim
    slots_total = cache.storage.shape[0] * BLOCK_TOKENS
    scale = torch.ones(1, dtype=torch.float32, device="cuda")
    written = torch.randn(max(TOKENS), q_width + 2 * kv_width, dtype=torch.bfloat16, device="cuda")
    qkv = torch.empty_like(written)
    slots = [
        [torch.arange(start, start + tokens, device="cuda") for start in _starts(slots_total, tokens)]
        for tokens in TOKENS
    ]

    def work() -> None:
        for tokens, places in zip(TOKENS, slots, strict=True):
            for place in places:
                qkv[:tokens].copy_(written[:tokens])
                _, key, value = qkv[:tokens].split([q_width, kv_width, kv_width], dim=-1)
                reshape_and_cache_flash(
                    key.view(tokens, heads.num_kv, heads.head_dim),
                    value.view(tokens, heads.num_kv, heads.head_dim),
                    cache.key,
                    cache.value,
                    place,
                    "auto",
                    scale,
                    scale,
                )
                between_calls()

    groups = split_at_marks(record(work), len(TOKENS) * (REPEATS + 1))
    rows: list[Row] = []
    for i, tokens in enumerate(TOKENS):
        events = [e for g in groups[i * (REPEATS + 1) + 1 : (i + 1) * (REPEATS + 1)] for e in g]
        first = events[0]
        rows.append(
            {
                "kind": "kv_write",
                "kernel": first.name,
                "dtype": "bfloat16",
                "grid_x": first.grid[0],
                "grid_y": first.grid[1],
                "grid_z": first.grid[2],
                "block_x": first.block[0] * first.block[1] * first.block[2],
                "shared_bytes": first.shared_bytes,
                "num_tokens": tokens,
                "width": kv_width,
                "method": "cupti",
                **summary([event.duration_us for event in events]),
            }
        )
    return rows


def _starts(slots_total: int, tokens: int) -> list[int]:
    step = max(BLOCK_TOKENS, (slots_total - tokens) // (REPEATS + 1) // BLOCK_TOKENS * BLOCK_TOKENS)
    return [i * step for i in range(REPEATS + 1)]
