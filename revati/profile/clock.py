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
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from revati.profile.clock_courses import FILE, KINDS, LAYERS, Course, Kind, Layer, Phase, Step, plans, write
from revati.profile.gpu_state import query_gpu

COOL_S = 3.0  # after so long without work the clock is back at its maximum
SAMPLE_MS = 20

Call = Callable[[], object]


class Runner:
    """Steps on a GPU; needs vLLM."""

    def __init__(self) -> None:
        from revati.profile import attention, gemm

        layers = {kind.layer for kind in KINDS.values()}
        self._caches = {layer: attention.Cache(layer.heads) for layer in layers}
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
        call = attention.prepare(batch, kind.layer.heads, cache)
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
