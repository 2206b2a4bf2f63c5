"""Layers back to back for seconds: what the power limit does to decode and prefill steps.

    python -m revati.profile.sustained gpu=h200 [out=kernel_db]

Runs the products and the attention of a 7B model's 32 layers, without an engine in between, sustained and
with a rest before each step. Writes ``<out>/gpu=NAME/sustained.json`` for `revati.profile.power_fit`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revati.profile.gpu_state import query_gpu
from revati.timing.attention_features import GRAPH_MAX_TOKENS

if TYPE_CHECKING:
    from revati.profile.attention import Cache

LAYERS, HIDDEN, INTERMEDIATE, HEADS = 32, 4096, 11008, 32
PROMPT_TOKENS = 1024
FILE = "sustained.json"
SETTLED_S = 1.0  # after so long the clock has found its level


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of step: decodes at contexts around a mean, and prompts of 1024 tokens."""

    name: str
    decodes: int
    mean_context: int
    prompts: int = 0
    attention: bool = True
    products: bool = True
    rest_s: float = 0.0  # before each step, so that the clock recovers
    seconds: float = 2.5

    @property
    def query_lens(self) -> list[int]:
        return [1] * self.decodes + [PROMPT_TOKENS] * self.prompts

    @property
    def context_lens(self) -> list[int]:
        draw, spread = random.Random(self.name), self.mean_context // 18
        decodes = [
            draw.randint(self.mean_context - spread, self.mean_context + spread) for _ in range(self.decodes)
        ]
        return decodes + [PROMPT_TOKENS] * self.prompts


@dataclass(frozen=True, slots=True)
class Sustained:
    """Mean milliseconds of a step's 32 layers, and of their attention, once the clock has settled."""

    case: Case
    step_ms: float
    attention_ms: float
    steps: int


def cases() -> list[Case]:
    """Each kind of step sustained and rested."""
    kinds = [
        Case("decode200x1090", 200, 1090),
        Case("attention200x1090", 200, 1090, products=False),
        Case("products200", 200, 1090, attention=False),
        Case("decode48x1090", 48, 1090),
        Case("decode32x350", 32, 350),
        Case("mixed1072", 48, 1090, 1),
        Case("mixed2096", 48, 1090, 2),
        Case("prompts4096", 0, 0, 4),
        Case("prompts8192", 0, 0, 8),
    ]
    found = []
    for case in kinds:
        rest_s = 0.25 if case.prompts else 0.15
        found += [case, Case(**{**asdict(case), "rest_s": rest_s, "seconds": 2.0})]
    return found


def read(path: Path) -> list[Sustained]:
    return [Sustained(Case(**row.pop("case")), **row) for row in json.loads(path.read_text())]


def write(found: list[Sustained], path: Path) -> None:
    path.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


def measure(case: Case, weights: list[tuple[Any, ...]], cache: Cache) -> Sustained:
    """Run the case for its time; needs vLLM and a GPU."""
    import torch

    step = _step(case, weights, cache)
    torch.cuda.synchronize()
    time.sleep(1.0)  # each case starts cool
    began_s = time.monotonic()
    timed: list[tuple[float, Any, Any, list[tuple[Any, Any]]]] = []
    while (at_s := time.monotonic() - began_s) < case.seconds:
        events = [_events() for _ in range(LAYERS)]
        begin, end = _events()
        begin.record()
        step(events)
        end.record()
        timed.append((at_s, begin, end, events))
        if len(timed) > 2:
            timed[-3][2].synchronize()  # never far ahead of the GPU
        if case.rest_s:
            torch.cuda.synchronize()
            time.sleep(case.rest_s)
    torch.cuda.synchronize()
    settled = [row for row in timed if row[0] >= (0.0 if case.rest_s else SETTLED_S)][1:]
    return Sustained(
        case,
        sum(begin.elapsed_time(end) for _, begin, end, _ in settled) / len(settled),
        sum(a.elapsed_time(b) for *_, events in settled for a, b in events) / len(settled),
        len(settled),
    )


def _events() -> tuple[Any, Any]:
    import torch

    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def _step(
    case: Case, weights: list[tuple[Any, ...]], cache: Cache
) -> Callable[[list[tuple[Any, Any]]], None]:
    import torch
    import torch.nn.functional as F

    from revati.profile import attention

    tokens = sum(case.query_lens)
    mode = "graph" if tokens <= GRAPH_MAX_TOKENS else "eager"
    batch = attention.Batch(mode, tuple(case.query_lens), tuple(case.context_lens))
    call = attention.prepare(batch, HEADS, HEADS, cache)
    x = torch.randn(tokens, HIDDEN, dtype=torch.bfloat16, device="cuda") * 0.1
    y = torch.randn(tokens, INTERMEDIATE, dtype=torch.bfloat16, device="cuda") * 0.1
    call.query.copy_(call.written)

    def step(events: list[tuple[Any, Any]]) -> None:
        for i, ((qkv, out, gate_up, down), (begin, end)) in enumerate(zip(weights, events, strict=True)):
            if case.products:
                F.linear(x, qkv)
            begin.record()
            if case.attention:
                call.launch(cache, i % len(call.tables))
            end.record()
            if case.products:
                F.linear(x, out), F.linear(x, gate_up), F.linear(y, down)

    return step


def main(arguments: list[str]) -> int:
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if set(given) - {"gpu", "out"} or "gpu" not in given or len(given) != len(arguments):
        print(__doc__, file=sys.stderr)
        return 2
    from revati.profile import attention
    from revati.profile.gemm import Weights

    pool = Weights()
    sizes = [
        *[(3 * HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)],
    ]
    weights = [tuple(pool.next(n, k) for n, k in sizes) for _ in range(LAYERS)]
    cache = attention.Cache(HEADS)
    found = []
    for case in cases():
        found.append(measure(case, weights, cache))
        print(found[-1], query_gpu("clocks.sm,power.draw,temperature.gpu"), flush=True)
    folder = Path(given.get("out", "kernel_db")) / f"gpu={given['gpu']}"
    folder.mkdir(parents=True, exist_ok=True)
    write(found, folder / FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
