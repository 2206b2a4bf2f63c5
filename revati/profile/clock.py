"""How a GPU's clock falls under layers back to back, recovers, and averages over what alternates.

    python -m revati.profile.clock gpu=h200 [out=kernel_db]

Runs the products and the attention of 32 layers, of a 7B model's and of an 8B one's with grouped queries,
without an engine in between, from a cool start: one kind of step for seconds, after pauses, and in turns.
Writes ``<out>/gpu=NAME/clock.json`` for `revati.profile.power_fit`.
"""

from __future__ import annotations

import bisect
import datetime
import gc
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from revati.profile.gpu_state import query_gpu

LAYERS, HEAD_DIM = 32, 128
FILE = "clock.json"
COOL_S = 3.0  # after so long without work the clock is back at its maximum
SAMPLE_MS = 20


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer's products and attention are of."""

    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int

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


Call = Callable[[], object]


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


class Runner:
    """Steps on a GPU; needs vLLM."""

    def __init__(self) -> None:
        from revati.profile import attention, gemm

        layers = {kind.layer for kind in KINDS.values()}
        self._caches = {layer: attention.Cache(layer.kv_heads) for layer in layers}
        self._products = {dtype: gemm.product(dtype) for dtype in ("bfloat16", "float8_e4m3")}
        pools = {dtype: gemm.Weights(dtype) for dtype in self._products}
        self._weights = {
            (layer, dtype): [tuple(pool.next(n, k) for n, k in layer.products) for _ in range(LAYERS)]
            for dtype, pool in pools.items()
            for layer in layers
        }
        self._steps = {name: self._step(kind) for name, kind in KINDS.items()}
        for step in self._steps.values():
            for _ in range(2):
                step([_events() for _ in range(LAYERS)])
        self._card = query_gpu("uuid")

    def course(self, name: str, phases: tuple[Phase, ...]) -> Course:
        import torch

        torch.cuda.synchronize()
        time.sleep(COOL_S)
        origin, _ = _events()
        with sampled() as samples:
            origin.record()
            torch.cuda.synchronize()
            began_s = time.time()
            timed = [(phase.judged, *row) for phase in phases for row in self._phase(phase)]
            torch.cuda.synchronize()
        steps, judged_from_ms = [], 0.0
        for judged, kind, begin, end, events in timed:
            at_ms, step_ms = origin.elapsed_time(begin), begin.elapsed_time(end)
            attention_ms = sum(a.elapsed_time(b) for a, b in events)
            seen = samples.means(began_s + at_ms / 1e3, began_s + (at_ms + step_ms) / 1e3)
            steps.append(Step(kind, round(at_ms, 2), round(step_ms, 3), round(attention_ms, 3), *seen))
            if not judged:
                judged_from_ms = at_ms + step_ms
        return Course(name, self._card, round(judged_from_ms, 2), steps)

    def _phase(self, phase: Phase) -> Iterator[tuple[str, Any, Any, list[tuple[Any, Any]]]]:
        import torch

        ends: list[Any] = []
        until_s = time.monotonic() + phase.seconds
        while True:
            for kind in phase.kinds:
                events = [_events() for _ in range(LAYERS)]
                begin, end = _events()
                begin.record()
                self._steps[kind](events)
                end.record()
                ends.append(end)
                if len(ends) > 2:
                    ends[-3].synchronize()  # never far ahead of the GPU
                yield kind, begin, end, events
            if phase.rest_s:
                torch.cuda.synchronize()
                time.sleep(phase.rest_s)
            if time.monotonic() >= until_s:
                return

    def _step(self, kind: Kind) -> Callable[[list[tuple[Any, Any]]], None]:
        """Launches the step's layers, each with an event before and after its attention."""
        from revati.profile import attention
        from revati.profile.attention_batches import Batch, mode_of

        query_lens = tuple(kind.query_lens)
        batch = Batch(mode_of(query_lens), query_lens, tuple(kind.context_lens), *kind.sharing)
        cache = self._caches[kind.layer]
        call = attention.prepare(batch, kind.layer.q_heads, kind.layer.kv_heads, cache)
        call.query.copy_(call.written)
        layers = self._calls(kind)

        def step(events: list[tuple[Any, Any]]) -> None:
            for i, ((before, after), (begin, end)) in enumerate(zip(layers, events, strict=True)):
                for launch in before:
                    launch()
                begin.record()
                if kind.attention:
                    call.launch(cache, i % len(call.tables))
                end.record()
                for launch in after:
                    launch()

        return step

    def _calls(self, kind: Kind) -> list[tuple[list[Call], list[Call]]]:
        """What each layer launches before and after its attention."""
        from revati.profile.gemm import random_input

        tokens = sum(kind.query_lens)
        small = _small(tokens, kind.layer) if kind.small else []
        if kind.products is None:
            return [([], small)] * LAYERS
        product = self._products[kind.products]
        inputs = [random_input(tokens, k, kind.products) for _, k in kind.layer.products]
        layers = []
        for weights in self._weights[kind.layer, kind.products]:
            calls: list[Call] = [
                partial(product, x, weight) for x, weight in zip(inputs, weights, strict=True)
            ]
            layers.append((calls[:1], small + calls[1:]))
        return layers


def _small(tokens: int, layer: Layer) -> list[Call]:
    """A layer's norms and its activation."""
    import torch
    from vllm import _custom_ops

    from revati.profile.gemm import random_input

    x, residual = (random_input(tokens, layer.hidden, "bfloat16").clone() for _ in range(2))
    weight = torch.ones(layer.hidden, dtype=torch.bfloat16, device="cuda")
    gate_up = random_input(tokens, 2 * layer.intermediate, "bfloat16")
    out = torch.empty(tokens, layer.intermediate, dtype=torch.bfloat16, device="cuda")
    norm = partial(_custom_ops.fused_add_rms_norm, x, residual, weight, 1e-5)
    return [norm, norm, partial(torch.ops._C.silu_and_mul, out, gate_up)]


def _events() -> tuple[Any, Any]:
    import torch

    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


class Samples:
    """The GPU's clock in MHz and its power in W at seconds since the epoch."""

    def __init__(self) -> None:
        self._at_s: list[float] = []
        self._seen: list[tuple[float, float]] = []

    def add(self, line: str) -> None:
        when, mhz, watts = line.split(",")
        self._at_s.append(datetime.datetime.strptime(when.strip(), "%Y/%m/%d %H:%M:%S.%f").timestamp())
        self._seen.append((float(mhz), float(watts)))

    def means(self, begin_s: float, end_s: float) -> tuple[float | None, float | None]:
        """Clock and power; None where no sample was taken in between."""
        first, last = bisect.bisect_left(self._at_s, begin_s), bisect.bisect_right(self._at_s, end_s)
        if first == last:
            return None, None
        mhz, watts = (sum(values) / (last - first) for values in zip(*self._seen[first:last], strict=True))
        return round(mhz, 1), round(watts, 1)


@contextmanager
def sampled() -> Iterator[Samples]:
    """Samples of the first GPU, complete once the context has ended."""
    command = ["nvidia-smi", "--query-gpu=timestamp,clocks.sm,power.draw.instant", "-i", "0"]
    sampler = subprocess.Popen(
        [*command, "--format=csv,noheader,nounits", "-lms", str(SAMPLE_MS)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sampler.stdout is not None
    samples = Samples()
    samples.add(sampler.stdout.readline())  # it takes its time to start
    try:
        yield samples
    finally:
        sampler.terminate()
        for line in sampler.communicate()[0].splitlines(keepends=True):
            if line.endswith("\n"):
                samples.add(line)


def main(arguments: list[str]) -> int:
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if set(given) - {"gpu", "out"} or "gpu" not in given or len(given) != len(arguments):
        print(__doc__, file=sys.stderr)
        return 2
    runner, found = Runner(), []
    gc.freeze()
    folder = Path(given.get("out", "kernel_db")) / f"gpu={given['gpu']}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, phases in plans().items():
        course = runner.course(name, phases)
        times = [step.step_ms for step in course.steps if step.kind == course.steps[-1].kind]
        print(f"{name}: {len(course.steps)} steps, {min(times):.2f} to {max(times):.2f} ms", flush=True)
        found.append(course)
        write(found, folder / FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
