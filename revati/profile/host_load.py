"""The load that calibrates a host: which engines, and which batches each of them must see."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from revati.deployment.prompts import make_requests
from revati.workload import Workload

DECODE_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 640, 1024)
# A segment for each of them: words on the stack besides.
AT_DEPTH, DEPTHS_WORDS = "depth", range(0, 2048, 128)
_DEPTH_VISITS, _DEPTH_PROMPTS = 2, (200, 600, 200, 600)  # of both kinds that launch a model's Python code
PREFILL_TOKENS = (16, 32, 64, 128, 192, 256, 384, 500, 520, 768, 1024, 1536, 2048, 3072, 4000)


@dataclass(frozen=True)
class EngineCase:
    """One engine to calibrate: a model of conf/model, changes to its config, engine arguments."""

    name: str
    model: str
    config: dict[str, Any] = field(default_factory=dict)
    engine_args: dict[str, Any] = field(default_factory=dict)
    scenes: bool = False
    brief: bool = False  # skip the slow segments


CASES = {
    case.name: case
    for case in (
        EngineCase("llama7b", "llama7b", scenes=True),
        EngineCase("llama13b", "llama13b", scenes=True),
        EngineCase("llama7b_eager", "llama7b", engine_args={"enforce_eager": True}, brief=True),
        EngineCase("llama7b_8layers", "llama7b", config={"num_hidden_layers": 8}, brief=True),
        EngineCase("gqa_80layers", "llama31_8b", config={"num_hidden_layers": 80}, brief=True, scenes=True),
        EngineCase("llama13b_tp2", "llama13b", engine_args={"tensor_parallel_size": 2}, brief=True),
        EngineCase(
            "llama13b_tp4", "llama13b", engine_args={"tensor_parallel_size": 4}, scenes=True, brief=True
        ),
    )
}


DEFAULT_CASES = ("llama7b", "llama13b", "llama7b_eager", "llama7b_8layers", "gqa_80layers")


@dataclass
class Request:
    """One request of a segment; arrival in seconds from the segment's start."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prompt: list[int] | None = None  # token ids; None: any


def requests_of(workload: Workload, vocabulary: int) -> list[Request]:
    """A workload's requests, whose prompts have in common what it says."""
    columns = (workload.arrival_s, workload.output_tokens, make_requests(workload, vocabulary, seed=0))
    return [
        Request(float(at), len(sent.prompt_token_ids), int(output), sent.prompt_token_ids)
        for at, output, sent in zip(*columns, strict=True)
    ]


def segments(brief: bool, seed: int = 7) -> list[tuple[str, list[Request]]]:
    """The calibration load: (name, requests) in order."""
    rng = random.Random(seed)
    result: list[tuple[str, list[Request]]] = []
    # Lone prefills into an idle engine, then one decode step.
    spaced = [n for n in PREFILL_TOKENS for _ in range(2 if brief else 4)]
    rng.shuffle(spaced)
    result.append(("lone", [Request(0.12 * i, n, 3) for i, n in enumerate(spaced)]))
    for batch in DECODE_BATCHES:
        outputs = 16 if batch > 512 else (24 if brief else 40)
        if brief and batch in (2, 24, 48, 96, 192, 384, 640):
            continue
        result.append((f"decode_{batch}", [Request(0.0, rng.randint(8, 24), outputs) for _ in range(batch)]))
    for count, tokens in ((4, 2000), (16, 512), (64, 120), (128, 60), (300, 20)):
        result.append((f"burst_{count}x{tokens}", [Request(0.0, tokens, 6) for _ in range(count)]))
    # Random arrivals over prefills of every size, on top of decode batches of different depth.
    for rate, seconds, longest in ((5, 4.0, 4000), (15, 4.0, 3000), (40, 3.0, 1000), (120, 2.0, 300)):
        if brief and rate == 15:
            continue
        at, requests = 0.0, []
        while (at := at + rng.expovariate(rate)) < seconds:
            prompt = int(16 * (longest / 16) ** rng.random())
            requests.append(Request(at, prompt, rng.randint(4, 120)))
        result.append((f"poisson_{rate}", requests))
    return result


def at_depths(seed: int = 7) -> list[tuple[int, list[Request]]]:
    """The same lone prefills at every depth of the stack, in words, which come in any order."""
    depths = [*DEPTHS_WORDS] * _DEPTH_VISITS
    random.Random(seed).shuffle(depths)
    prompts = [Request(0.06 * at, tokens, 3) for at, tokens in enumerate(_DEPTH_PROMPTS)]
    return [(words, prompts) for words in depths]


def write_model(case: EngineCase, folder: Path) -> Path:
    """Write the config.json that the engine loads; return its folder."""
    import yaml

    from revati.paths import conf_dir

    config = yaml.safe_load((conf_dir() / "model" / f"{case.model}.yaml").read_text())["hf_config"]
    path = folder / case.name
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config | case.config))
    return path
