"""What `revati.profile.clock` runs and writes: layers, kinds of steps, courses of them."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from revati.timing.attention_features import Heads

LAYERS, HEAD_DIM = 32, 128
FILE = "clock.json"


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer's products and attention are of."""

    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int

    @property
    def heads(self) -> Heads:
        return Heads(self.q_heads, self.kv_heads, HEAD_DIM)

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """Outputs and inputs of each: query, key and value; attention's output; gate and up; down."""
        queries, keys = self.q_heads * HEAD_DIM, self.kv_heads * HEAD_DIM
        return (
            (queries + 2 * keys, self.hidden),
            (self.hidden, queries),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        )


PLAIN = Layer(4096, 11008, 32, 32)  # Llama 2 7B's
GROUPED = Layer(4096, 14336, 32, 8)  # Llama 3.1 8B's


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of step: decodes at contexts around a mean, and prompts of 1024 tokens."""

    decodes: int = 0
    mean_context: int = 0
    prompts: int = 0
    attention: bool = True
    products: str | None = "bfloat16"  # their precision
    small: bool = False  # norms and the activation
    layer: Layer = PLAIN
    shared_tokens: int = 0  # of all contexts, in the same blocks

    PROMPT_TOKENS = 1024

    @property
    def query_lens(self) -> list[int]:
        return [1] * self.decodes + [self.PROMPT_TOKENS] * self.prompts

    @property
    def context_lens(self) -> list[int]:
        draw, spread = random.Random(self.mean_context), self.mean_context // 18
        decodes = [
            draw.randint(self.mean_context - spread, self.mean_context + spread) for _ in range(self.decodes)
        ]
        return decodes + [self.PROMPT_TOKENS] * self.prompts

    @property
    def sharing(self) -> tuple[int, int]:
        """Groups of contexts that begin alike, and with how many tokens."""
        return int(self.shared_tokens > 0), self.shared_tokens


KINDS = {
    "decode200x1090": Kind(200, 1090),
    "attention200x1090": Kind(200, 1090, products=None),
    "products200": Kind(200, 1090, attention=False),
    "decode48x1090": Kind(48, 1090),
    "mixed1072": Kind(48, 1090, 1),
    "mixed2096": Kind(48, 1090, 2),
    "prompts1024": Kind(prompts=1),
    "prompts2048": Kind(prompts=2),
    "prompts4096": Kind(prompts=4),
    "prompts8192": Kind(prompts=8),
    "products4096": Kind(prompts=4, attention=False),
    "small8192": Kind(prompts=8, attention=False, products=None, small=True),
    "fp8_products2048": Kind(prompts=2, attention=False, products="float8_e4m3"),
    "fp8_products4096": Kind(prompts=4, attention=False, products="float8_e4m3"),
    "grouped200x300": Kind(200, 300, layer=GROUPED),
    "grouped100x350": Kind(100, 350, layer=GROUPED),
    "grouped24x400": Kind(24, 400, layer=GROUPED),
    "grouped_attention200x300": Kind(200, 300, products=None, layer=GROUPED),
    "grouped_products200": Kind(200, 300, attention=False, layer=GROUPED),
    "grouped_products100": Kind(100, 350, attention=False, layer=GROUPED),
    "grouped_products24": Kind(24, 400, attention=False, layer=GROUPED),
    "grouped_attention64x2200": Kind(64, 2200, products=None, layer=GROUPED),
    "alike_attention64x2200": Kind(64, 2200, products=None, layer=GROUPED, shared_tokens=2048),
    "small200": Kind(200, 300, attention=False, products=None, small=True),
    "grouped_whole200x300": Kind(200, 300, small=True, layer=GROUPED),
}


class Phase(NamedTuple):
    """Rounds of steps for some seconds, each followed by a rest."""

    kinds: tuple[str, ...]
    seconds: float
    rest_s: float = 0.0
    judged: bool = True  # or it only comes before others


class Step(NamedTuple):
    kind: str
    at_ms: float  # since the course began
    step_ms: float  # its 32 layers on the GPU
    attention_ms: float  # of them
    clock_mhz: float | None = None  # None: not sampled meanwhile
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """Steps one after another from a cool start; those before ``judged_from_ms`` only bring the GPU there."""

    name: str
    card: str  # its UUID
    judged_from_ms: float = 0.0
    steps: list[Step] = field(default_factory=list)


def plans() -> dict[str, tuple[Phase, ...]]:
    """Name and phases of each course."""
    found: dict[str, tuple[Phase, ...]] = {
        kind: (Phase((kind,), 4.0 if KINDS[kind].prompts > 1 else 3.0),)
        for kind in KINDS
        if kind != "prompts1024"
    }
    for pause_s in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        heavy, after = Phase(("prompts8192",), 2.5, judged=False), Phase(("prompts1024",), 0.3)
        found[f"pause_{pause_s:g}s"] = (heavy, Phase((), 0.0, pause_s), after)
    for decodes in (1, 3, 8):
        found[f"prompt_and_{decodes}_decodes"] = (Phase(("prompts1024", *("decode48x1090",) * decodes), 3.0),)
    for rest_s in (0.02, 0.06, 0.15):
        found[f"prompts_every_{rest_s:g}s"] = (Phase(("prompts1024",) * 2, 3.0, rest_s),)
    return found


def read(path: Path) -> list[Course]:
    return [
        Course(**{**course, "steps": [Step(*step) for step in course["steps"]]})
        for course in json.loads(path.read_text())
    ]


def write(found: list[Course], path: Path) -> None:
    """A line a course."""
    path.write_text("[\n" + ",\n".join(json.dumps(asdict(one)) for one in found) + "\n]\n")
