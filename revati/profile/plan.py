"""What to measure first: the units of work whose measurement takes away most error for its time.

A unit's gain is the share of GPU time that its kernels have in serving, times how much less is known of them
without it than with it. Shares and errors are those of Llama-like models on an H200; they only order the
work. GEMMs and attention come in two passes: first the captured sizes of decode steps and the ends of tiles
of all models, and batches of a grid of sizes; then the tokens and the batches in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from revati.profile.attention_batches import Batch, batches_between, first_batches
from revati.profile.options import PRECISIONS, Options
from revati.timing import db
from revati.timing.attention_features import Heads

Row = dict[str, object]

# Family → share of GPU time, error without a measurement, error with it (relative).
GAIN: dict[str, tuple[float, float, float]] = {
    "gap": (0.05, 0.5, 0.1),
    "gemm": (0.60, 0.12, 0.024),  # at the tokens of a first pass, with lines between them
    "gemm_between": (0.60, 0.024, 0.01),
    "attention": (0.20, 0.15, 0.06),
    "attention_between": (0.20, 0.06, 0.04),
    "engine": (0.10, 0.4, 0.05),
    "kv_write": (0.02, 0.2, 0.05),
    "copy": (0.01, 0.5, 0.05),
    "collective": (0.10, 0.5, 0.05),
}
# Rough seconds of a unit on an H200; a session's log has the real ones.
SECONDS = {
    "gap": 3.0,
    "gemm": 4.0,
    "gemm_between": 5.0,
    "attention": 14.0,
    "attention_between": 5.0,
    "kv_write": 4.0,
    "copy": 3.0,
    "collective": 120.0,
}
OWN_KIND = {"bf16": "norm", "fp8": "quant"}  # of kernels that only an engine shows
# How often a unit's model and parallelism are asked for; each doubling of GPUs halves it.
POPULARITY = {
    "llama7b": 1.0,
    "llama31_8b": 1.0,
    "llama13b": 0.8,
    "qwen3_8b": 0.8,
    "llama31_70b": 0.8,
    "mistral_7b": 0.5,
    "qwen25_14b": 0.5,
}
LEAST_POPULARITY = 0.3


@dataclass(frozen=True, slots=True)
class Unit:
    """Work that is measured and stored as a whole; ``measure`` needs a GPU."""

    family: str
    name: str
    measure: Callable[[], list[Row]]
    weight: float = 1.0  # popularity of what needs it

    @property
    def file(self) -> str:
        """The database's file that its rows go to."""
        return self.family.removesuffix("_between")

    @property
    def part(self) -> str:
        """Its name among the parts of that file."""
        return self.name + self.family.removeprefix(self.file)

    @property
    def seconds(self) -> float:
        return SECONDS[self.family]

    @property
    def gain(self) -> float:
        """Expected reduction of the relative error of a trial's GPU time."""
        share, without, remaining = GAIN[self.family]
        return self.weight * share * (without - remaining)


def engines_within(options: Options, known: Known) -> tuple[str, ...]:
    """The precisions whose engines are to be recorded: their small kernels are asked for and not there."""
    if "engine" not in options.families:
        return ()
    return tuple(one for one in options.precisions if OWN_KIND[one] not in known.kinds)


def ordered(units: list[Unit]) -> list[Unit]:
    """Those with the largest gain a second first; equals stay in order."""
    return sorted(units, key=lambda unit: -unit.gain / unit.seconds)


def within(units: list[Unit], seconds: float) -> tuple[list[Unit], list[Unit]]:
    """Those of an ordered plan that fit the time, and the rest; a long unit lets shorter ones pass."""
    chosen, rest, left = [], [], seconds
    for unit in units:
        if unit.seconds <= left:
            chosen.append(unit)
            left -= unit.seconds
        else:
            rest.append(unit)
    return chosen, rest


def show(chosen: list[Unit], rest: list[Unit]) -> str:
    """The plan as a few lines of text."""
    total = sum(unit.gain for unit in [*chosen, *rest]) or 1.0
    lines = [f"plan: {len(chosen)} units in about {sum(unit.seconds for unit in chosen):.0f} s"]
    lines += [
        f"  {unit.family}.{unit.name}: {unit.seconds:.0f} s, {unit.gain / total:.1%} of the expected gain"
        for unit in chosen
    ]
    if rest:
        left_out = ", ".join(f"{unit.family}.{unit.name}" for unit in rest)
        lines.append(f"  beyond the budget ({sum(u.gain for u in rest) / total:.1%}): {left_out}")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Known:
    """What a database has: kinds of kernels, tokens by weight shape and data type, batches by heads."""

    kinds: frozenset[str] = frozenset()
    tokens: Mapping[tuple[int, int, str], frozenset[int]] = field(default_factory=dict)  # by (n, k, dtype)
    batches: Mapping[Heads, frozenset[Batch]] = field(default_factory=dict)
    kv_widths: frozenset[int] = frozenset()

    @classmethod
    def of(cls, measured: pa.Table) -> Known:
        columns = ["kind", "dtype", "m", "n", "k", "width"]
        rows = measured.select(columns).to_pylist()
        tokens: dict[tuple[int, int, str], set[int]] = {}
        batches: dict[Heads, set[Batch]] = {}
        for row in rows:
            if row["kind"] == "gemm":
                tokens.setdefault((row["n"], row["k"], row["dtype"]), set()).add(row["m"])
        of_batch = ["variant", "query_lens", "context_lens", "num_q_heads", "num_kv_heads", "head_dim"]
        for row in db.rows(measured, of_batch, kind="attention"):
            batches.setdefault(Heads.of_row(row), set()).add(Batch.of_row(row))
        return cls(
            frozenset(row["kind"] for row in rows),
            {shape: frozenset(own) for shape, own in tokens.items()},
            {heads: frozenset(own) for heads, own in batches.items()},
            frozenset(row["width"] for row in rows if row["kind"] == "kv_write"),
        )

    def lacking(self, shape: tuple[int, int], dtype: str, tokens: Iterable[int]) -> list[int]:
        """Those tokens that the weight shape was not measured at."""
        return sorted(set(tokens) - self.tokens.get((*shape, dtype), frozenset()))

    def lacking_batches(self, heads: Heads, batches: Iterable[Batch]) -> list[Batch]:
        """Those batches that attention of these heads was not measured at."""
        has = self.batches.get(heads, frozenset())
        return [batch for batch in batches if batch not in has]


def units_of(options: Options, known: Known) -> list[Unit]:
    """The work that the options ask for and the database lacks, the most worthwhile first.

    Models share what they have in common.
    """
    from revati.profile.families import Work
    from revati.profile.shapes import (
        COARSE_TOKENS,
        LAYER_TOKENS,
        LM_HEAD_TOKENS,
        layer_gemms,
        lm_head_gemm,
        rank_shape,
    )

    work, units, seen = Work(), [], set[tuple[object, ...]]()
    passes = {"attention": first_batches(), "attention_between": batches_between()}

    def once(*key: object) -> bool:
        new = key not in seen
        seen.add(key)
        return new

    for family, measure in (("gap", work.gaps), ("copy", work.copies), ("collective", work.collectives)):
        if family in options.families and family not in known.kinds:
            units.append(Unit(family, "all" if family != "collective" else work.gpus_name(), measure))
    for tp in options.tensor_parallel:
        for model in options.models:
            shape, weight = rank_shape(model, tp), POPULARITY.get(model, LEAST_POPULARITY) / tp
            for precision in options.precisions if "gemm" in options.families else ():
                dtype, suffix = PRECISIONS[precision], "" if precision == "bf16" else f"_{precision}"
                # A layer's products are measured between each other, those that are known, too.
                shapes = {
                    s: LAYER_TOKENS[precision] if once("gemm", dtype, *s) else () for s in layer_gemms(shape)
                }
                head = lm_head_gemm(shape)  # which vLLM leaves in bf16
                if precision == "bf16" and once("gemm", dtype, *head):
                    shapes[head] = LM_HEAD_TOKENS
                for family, coarse in (("gemm", True), ("gemm_between", False)):
                    wanted = {
                        s: known.lacking(s, dtype, [m for m in tokens if (m in COARSE_TOKENS) == coarse])
                        for s, tokens in shapes.items()
                    }
                    if any(wanted.values()):
                        name = f"{model}_tp{tp}{suffix}"
                        units.append(Unit(family, name, work.gemms(wanted, dtype, head), weight))
            heads = Heads.of_rank(shape)
            name = f"q{heads.num_q}_kv{heads.num_kv}" + (
                f"_d{heads.head_dim}" if heads.head_dim != 128 else ""
            )
            if "attention" in options.families and once("attention", heads):
                for family, batches in passes.items():
                    if lacking := known.lacking_batches(heads, batches):
                        sharing = family == "attention" and heads not in known.batches
                        units.append(Unit(family, name, work.attention(heads, lacking, sharing), weight))
            width = shape.num_kv_heads * shape.head_dim
            if "kv_write" in options.families and width not in known.kv_widths and once("kv_write", heads):
                units.append(Unit("kv_write", name, work.kv_writes(heads), weight))
    return ordered(units)
