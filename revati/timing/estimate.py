"""What a timing source answers, and what it is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from revati.spec import ModelShape

Provenance = Literal["measured", "interpolated", "extrapolated", "roofline"]
PROVENANCES: tuple[str, ...] = get_args(Provenance)  # best first
# How an engine calls FlashAttention: vLLM's graphs of whole decode steps ask for up to 32 splits, otherwise
# it chooses them itself; SGLang leaves the choice to it in graphs, too, and has kernels of its own build.
AttentionUse = Literal["graph", "eager", "sglang"]


class Estimate(NamedTuple):
    """The time that a GPU spends on one operation.

    ``rel_std`` is the expected relative error (one standard deviation) of ``duration_us``, at the GPU's full
    clock; ``kind`` is the kernel family (``gemm``, ``attention``, ``norm``, …).  ``flops`` and ``nbytes`` are
    the work that is done, on operands of ``dtype``, for kernels heavy enough to meet the power limit (see
    `power`); a byte from L2 counts as its share of the energy of one from memory.  ``launches`` is how many
    places of the GPU's launch queue the operation takes, ``std_us`` the standard deviation of its time from
    one launch to the next, ``crowded`` how many times as long it takes beside a broadcast that waits for its
    source.

    A tuple, because every engine step makes some, and a frozen dataclass takes four times as long.
    """

    duration_us: float
    provenance: Provenance
    rel_std: float
    kind: str
    flops: float = 0.0
    nbytes: float = 0.0
    launches: int = 1
    std_us: float = 0.0
    dtype: str = "bfloat16"
    crowded: float = 1.0


def weaker(one: Provenance, other: Provenance) -> Provenance:
    """The less trustworthy of the two."""
    return max(one, other, key=PROVENANCES.index)


@dataclass(frozen=True, slots=True)
class RankShape:
    """A dense decoder as one tensor-parallel rank sees it: all sizes are per rank."""

    hidden: int
    intermediate: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    num_layers: int
    dtype: str = "bfloat16"
    tp: int = 1

    @classmethod
    def of(cls, model: ModelShape, tp: int) -> RankShape:
        """One of ``tp`` ranks of a model; KV heads are replicated where there are fewer of them."""
        return cls(
            hidden=model.hidden_size,
            intermediate=model.intermediate_size // tp,
            num_q_heads=model.num_attention_heads // tp,
            num_kv_heads=max(1, model.num_key_value_heads // tp),
            head_dim=model.head_dim,
            vocab=model.vocab_size // tp,
            num_layers=model.num_hidden_layers,
            dtype=model.dtype,
            tp=tp,
        )


FP8 = frozenset({"float8_e4m3"})
DTYPE_BYTES: dict[str, int] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float8_e4m3": 1,
    "int8": 1,
    "int32": 4,
    "int64": 8,
}


def dtype_bytes(dtype: str) -> int:
    """Bytes per element; accepts ``torch.bfloat16`` and ``bfloat16`` alike.

    Raises:
        ValueError: the data type is not one that the timing models know.
    """
    size = DTYPE_BYTES.get(dtype.removeprefix("torch."))
    if size is None:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPE_BYTES)}")
    return size
