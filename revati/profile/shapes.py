"""What to measure: the weight shapes and head counts of known models at each tensor parallelism."""

from __future__ import annotations

from typing import Any

import yaml

from revati import paths
from revati.spec import ModelShape
from revati.timing.estimate import RankShape

Shape = tuple[int, int]  # of weights: n, k

# Tokens in a forward pass. Dense where CUDA graphs and tiles change, odd sizes to test in between.
GRAPH_TOKENS = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
ODD_TOKENS = (3, 12, 27, 50, 100, 143, 300, 450, 1000, 1500, 3000, 5000, 7000, 8191)
EAGER_TOKENS = (
    *range(544, 1025, 32),
    *range(1088, 4097, 64),
    *range(4352, 8193, 256),
    *range(9216, 16385, 1024),
)
GEMM_TOKENS = tuple(sorted({*GRAPH_TOKENS, *ODD_TOKENS, *EAGER_TOKENS}))
# A first pass over GEMM_TOKENS: the captured sizes of decode steps, and ends of tiles for longer ones.
COARSE_TOKENS = (
    *(1, 2, 4, *range(8, 257, 8), *range(288, 513, 32)),
    *(640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 8192, 12288, 16384),
)
LM_HEAD_TOKENS = tuple(m for m in GEMM_TOKENS if m <= 1024)
# vLLM's FP8 products change their tiles at sizes of their own, most of them between 256 and 2048 tokens.
FP8_TOKENS = tuple(
    sorted({*GEMM_TOKENS, *range(264, 513, 16), *range(528, 1025, 32), *range(1056, 2049, 64)})
)
LAYER_TOKENS = {"bf16": GEMM_TOKENS, "fp8": FP8_TOKENS}  # by precision


def hf_config(model: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((paths.conf_dir() / "model" / f"{model}.yaml").read_text())
    return dict(config["hf_config"])


def rank_shape(model: str, tp: int) -> RankShape:
    """One of ``tp`` ranks of a model of conf/model."""
    return RankShape.of(ModelShape(model, hf_config(model)), tp)


def layer_gemms(shape: RankShape) -> list[Shape]:
    """(n, k) of qkv, o, gate_up and down."""
    q_width = shape.num_q_heads * shape.head_dim
    kv_width = shape.num_kv_heads * shape.head_dim
    return [
        (q_width + 2 * kv_width, shape.hidden),
        (shape.hidden, q_width),
        (2 * shape.intermediate, shape.hidden),
        (shape.hidden, shape.intermediate),
    ]


def lm_head_gemm(shape: RankShape) -> Shape:
    return (shape.vocab, shape.hidden)


# (n, k) of two products, about half of a layer of Llama 2 7B at two to four ranks, for what is between them.
UP_AND_DOWN = ((5504, 4096), (4096, 5504))
# More tokens meet the power limit, and products with all-reduces in between do so less than those without.
PAIR_TOKENS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
