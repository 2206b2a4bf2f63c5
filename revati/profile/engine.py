"""A short real vLLM run per model: every small kernel of a step, with its true name, launch and neighbours.

Two layers suffice, since layers repeat. Each engine is a process of its own: it starts and compiles beside
the others, then waits for its turn, so that nothing else uses the GPU while it is recorded.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revati.profile.options import PRECISIONS
from revati.profile.shapes import hf_config, rank_shape

if TYPE_CHECKING:
    from revati.profile.parts import Parts, Row
    from revati.profile.recorder import GpuEvent

LAYERS = 2
MAX_MODEL_LEN = 8448
KV_CACHE_BYTES = 6 * 2**30
START_TIMEOUT_S = 300.0
RECORD_TIMEOUT_S = 90.0
PROMPTS = (3, 16, 32, 64, 100, 128, 192, 256, 384, 512, 600, 768, 1024, 1500, 2048, 3000, 4096, 6000, 8192)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
ROUNDS = 2
QUEUED_GAP_US = 3.0  # a longer one means that the host was late


@dataclass(frozen=True, slots=True)
class Recorded:
    """One engine: a model's rank at a tensor parallelism, with vLLM's compilation or without.

    Of an engine that quantises, only the kernels that do it are kept: the others are those of bf16.
    """

    model: str
    tp: int
    eager: bool
    precision: str = "bf16"

    @property
    def unit(self) -> str:
        name = f"{self.model}_tp{self.tp}_{'eager' if self.eager else 'compiled'}"
        return name if self.precision == "bf16" else f"{name}_{self.precision}"


ENGINES = (
    Recorded("llama7b", 1, False),
    Recorded("llama13b", 1, False),
    Recorded("llama31_8b", 1, False),
    Recorded("qwen3_8b", 1, False),
    Recorded("llama31_70b", 4, False),
    Recorded("llama7b", 1, True),
    Recorded("llama31_70b", 4, True),
    Recorded("llama31_8b", 1, False, "fp8"),
    Recorded("llama13b", 1, False, "fp8"),
    Recorded("llama7b", 1, False, "fp8"),
    Recorded("qwen3_8b", 1, False, "fp8"),
    Recorded("llama31_70b", 4, False, "fp8"),
    Recorded("llama7b", 1, True, "fp8"),
)


def rank_config(model: str, tp: int) -> dict[str, Any]:
    """A Hugging Face configuration whose whole is one rank of ``model``, two layers deep."""
    shape = rank_shape(model, tp)
    return hf_config(model) | {
        "num_attention_heads": shape.num_q_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": max(MAX_MODEL_LEN, int(hf_config(model)["max_position_embeddings"])),
    }


def measure_all(parts: Parts, engines: tuple[Recorded, ...], deadline_s: float) -> dict[str, int]:
    """Start the engines side by side, then record one after another; returns rows per unit."""
    todo = [engine for engine in engines if not parts.path("engine", engine.unit).exists()]
    folder = Path(tempfile.mkdtemp(prefix="revati-engines-"))
    running = {engine: _start(engine, folder) for engine in todo}
    rows: dict[str, int] = {}
    started = time.monotonic()
    for engine in todo:  # all must be up before any is recorded
        while running[engine].poll() is None and not (folder / f"{engine.unit}.ready").exists():
            if time.monotonic() - started > START_TIMEOUT_S or time.monotonic() > deadline_s:
                running[engine].kill()
                break
            time.sleep(0.2)
    for engine in todo:
        if running[engine].poll() is None:
            (folder / f"{engine.unit}.go").touch()
            try:
                running[engine].wait(RECORD_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                running[engine].kill()
        result = folder / f"{engine.unit}.json"
        log = (folder / f"{engine.unit}.log").read_text(errors="replace")
        if result.exists():
            found: list[Row] = json.loads(result.read_text())
            rows[engine.unit] = parts.run("engine", engine.unit, partial(list, found))
        else:
            print(f"engine {engine.unit} failed:\n{log[-3000:]}", flush=True)
    return rows


def _start(engine: Recorded, folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(folder / engine.unit / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / engine.unit / "inductor"),
        "TRITON_CACHE_DIR": str(folder / engine.unit / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
    }
    arguments = [sys.executable, "-m", "revati.profile.engine", json.dumps(asdict(engine)), str(folder)]
    with (folder / f"{engine.unit}.log").open("wb") as log:
        return subprocess.Popen(arguments, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _child(engine: Recorded, folder: Path) -> None:
    from vllm import LLM, SamplingParams

    model = folder / f"{engine.unit}.model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(rank_config(engine.model, engine.tp)))
    llm = LLM(
        model=str(model),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        quantization=None if engine.precision == "bf16" else engine.precision,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
        gpu_memory_utilization=0.1,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        enable_prefix_caching=False,
        enforce_eager=engine.eager,
    )

    draw = random.Random(0)

    def run(requests: int, prompt_tokens: int, output_tokens: int) -> None:
        prompts = [
            {"prompt_token_ids": [draw.randrange(1000, 30000) for _ in range(prompt_tokens)]}
            for _ in range(requests)
        ]
        sampling = SamplingParams(
            temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False
        )
        llm.generate(prompts, sampling, use_tqdm=False)

    def rounds() -> None:
        for prompt_tokens in PROMPTS:
            run(1, prompt_tokens, 2)
        for batch in BATCHES:
            run(batch, 5, 4)

    rounds()
    (folder / f"{engine.unit}.ready").touch()
    go = folder / f"{engine.unit}.go"
    while not go.exists():
        time.sleep(0.1)

    from revati.profile.recorder import record

    events: list[GpuEvent] = []
    for _ in range(ROUNDS):
        events += record(rounds)
    unfinished = folder / f"{engine.unit}.unfinished"
    unfinished.write_text(json.dumps(_rows(engine, events)))
    unfinished.rename(folder / f"{engine.unit}.json")


def _rows(engine: Recorded, events: list[GpuEvent]) -> list[Row]:
    from revati.profile.parts import summary
    from revati.timing.families import family
    from revati.timing.launches import row_width

    shape, quantised = rank_shape(engine.model, engine.tp), engine.precision != "bf16"
    grouped: dict[tuple[Any, ...], list[GpuEvent]] = {}
    for event in events:
        if event.category == "kernel" and family(event.name) not in ("gemm", "attention", "combine"):
            grouped.setdefault((event.name, event.grid, event.block, event.shared_bytes), []).append(event)
    rows: list[Row] = []
    for (name, grid, block, shared_bytes), found in grouped.items():
        kind = family(name)
        if quantised and kind != "quant":
            continue
        rows.append(
            {
                "kind": kind,
                "kernel": name,
                "variant": "eager" if engine.eager else "compiled",
                "dtype": PRECISIONS[engine.precision],
                "grid_x": grid[0],
                "grid_y": grid[1],
                "grid_z": grid[2],
                "block_x": block[0] * block[1] * block[2],
                "shared_bytes": shared_bytes,
                "width": row_width(name, kind, shape),
                "num_q_heads": shape.num_q_heads,
                "num_kv_heads": shape.num_kv_heads,
                "head_dim": shape.head_dim,
                "method": "cupti",
                **summary([event.duration_us for event in found]),
            }
        )
    if not engine.eager and not quantised:
        rows += _gap_rows(events)
    return rows


def _gap_rows(events: list[GpuEvent]) -> list[Row]:
    """Idle time between kernels: within a graph, and between launches that follow at once.

    A split-K reduction belongs to its GEMM, and FlashAttention's combine kernel may start before its main
    kernel ends: neither boundary counts.
    """
    from revati.profile.parts import summary

    kernels = Counter(event.correlation for event in events)
    gaps: dict[str, list[float]] = {"graph": [], "stream": []}
    main = _main_stream(events)
    for before, after in pairwise(event for event in events if event.stream == main):
        gap = after.start_us - before.end_us
        if any(name in after.name for name in ("splitKreduce", "FlashAttnFwdCombine")):
            continue
        if before.correlation == after.correlation:
            gaps["graph"].append(gap)
        elif kernels[before.correlation] == kernels[after.correlation] == 1 and 0 <= gap < QUEUED_GAP_US:
            gaps["stream"].append(gap)
    return [
        {"kind": "gap", "kernel": name, "variant": "engine", "method": "cupti", **summary(found)}
        | {"median_us": sum(found) / len(found)}
        for name, found in gaps.items()
        if found
    ]


def _main_stream(events: list[GpuEvent]) -> int:
    return Counter(event.stream for event in events).most_common(1)[0][0]


if __name__ == "__main__":
    _child(Recorded(**json.loads(sys.argv[1])), Path(sys.argv[2]))
