"""Calibrate host time on a machine with the target's CPU and GPU: real vLLM, synthetic load, step logs.

    python -m revati.profile.host_calibration run --out DIR [--engine llama7b ...]
    python -m revati.profile.host_fit --runs DIR/llama7b DIR/... --out conf/host/NAME.yaml

`run` starts one engine after another and drives it through segments that visit the batches a host table
must know: lone prefills, bursts, decode batches, and arrivals at random. The load resembles no workload
that results are validated with, and no end-to-end result goes into the table, which `host_fit` makes.
Revati must be installed there, so that the engines find its logging plug-ins.
"""

import argparse
import asyncio
import gc
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

now = time.monotonic

PLUGINS = ("revati_step_log", "revati_worker_log", "revati_frontend_log")
INSTALL_HINT = "install Revati first (pip install -e .)"
DECODE_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 640, 1024)
PREFILL_TOKENS = (16, 32, 64, 128, 192, 256, 384, 500, 520, 768, 1024, 1536, 2048, 3072, 4000)
SCENE_DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SCENE_PREFILLS = (16, 64, 128, 256, 512, 1024, 2048, 4000, 8000)


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


@dataclass
class Outcome:
    """What the client saw of a request; times are CLOCK_MONOTONIC seconds."""

    request_id: str
    segment: str
    arrival_s: float
    submitted_s: float
    prompt_tokens: int
    output_tokens: int
    token_times_s: list[float]
    # The engine core's own statistics
    queued_s: float = math.nan
    scheduled_s: float = math.nan
    engine_first_token_s: float = math.nan
    engine_last_token_s: float = math.nan


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


def write_model(case: EngineCase, folder: Path) -> Path:
    """Write the config.json that the engine loads; return its folder."""
    import yaml

    from revati.paths import conf_dir

    config = yaml.safe_load((conf_dir() / "model" / f"{case.model}.yaml").read_text())["hf_config"]
    path = folder / case.name
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config | case.config))
    return path


class Client:
    """An open-loop load generator in the frontend's own process and event loop."""

    def __init__(self, engine: Any, vocabulary: int, seed: int = 11) -> None:
        self.engine = engine
        self.rng = random.Random(seed)
        self.vocabulary = vocabulary
        self.count = 0
        self.outcomes: list[Outcome] = []

    async def segment(self, name: str, requests: list[Request]) -> None:
        """Send a segment's requests at their arrivals and wait for all outputs."""
        prompts = [self.prompt(request.prompt_tokens) for request in requests]
        start = now() + 0.02
        tasks = []
        for request, prompt in zip(requests, prompts, strict=True):
            if (pause := start + request.arrival_s - now()) > 0:
                await asyncio.sleep(pause)
            self.count += 1
            tasks.append(asyncio.create_task(self.one(name, request, prompt, start, f"q{self.count}")))
        await asyncio.gather(*tasks)

    def prompt(self, tokens: int) -> list[int]:
        return [self.rng.randrange(10, self.vocabulary - 10) for _ in range(tokens)]

    async def one(self, segment: str, request: Request, prompt: list[int], start: float, name: str) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,
            ignore_eos=True,
            max_tokens=request.output_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        outcome = Outcome(
            name, segment, start + request.arrival_s, now(), len(prompt), request.output_tokens, []
        )
        self.outcomes.append(outcome)
        async for output in self.engine.generate({"prompt_token_ids": prompt}, params, name):
            at = now()
            outcome.token_times_s.extend([at] * len(output.outputs[0].token_ids))
        outcome.queued_s, outcome.scheduled_s = output.metrics.queued_ts, output.metrics.scheduled_ts
        outcome.engine_first_token_s = output.metrics.first_token_ts
        outcome.engine_last_token_s = output.metrics.last_token_ts


def start_engine(
    name: str, folder: Path, engine_args: dict[str, Any], extension: str = ""
) -> tuple[Any, Any, float]:
    """Start an AsyncLLM with its engine core in a process of its own and weights of no meaning.

    Args:
        folder: holds the model's config.json
        extension: class that the workers get as an extension, none if empty

    Returns: the engine, its resolved configuration, and how many seconds the start took.
    """
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    begin = now()
    arguments = AsyncEngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        worker_extension_cls=extension,
        **engine_args,
    )
    config = arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
    engine = AsyncLLM.from_vllm_config(config, usage_context=UsageContext.OPENAI_API_SERVER)
    start_s = now() - begin
    print(f"[{name}] started in {start_s:.1f} s", flush=True)
    return engine, config, start_s


async def run_engine(case: EngineCase, out: Path, models: Path) -> None:
    """Start one engine, drive it through all segments and scenes, write everything below `out`."""
    from revati.engines.vllm import frontend_log

    engine, config, start_s = start_engine(
        case.name, write_model(case, models), case.engine_args, "revati.profile.scenes.SceneRecorder"
    )
    client = Client(engine, int(config.model_config.get_vocab_size()))
    core = engine.engine_core
    out.mkdir(parents=True, exist_ok=True)
    description = {"case": asdict(case)} | describe(config, start_s)
    (out / "run.json").write_text(json.dumps(description, indent=1, default=str))
    # Warm-up: first prefills and decodes allocate and compile what later ones reuse.
    await client.segment("warmup", [Request(0.05 * i, 30 * i + 8, 8) for i in range(24)])
    await core.call_utility_async("clear_step_log")
    frontend_log.clear()
    client.outcomes.clear()
    gc.collect()
    gc.freeze()
    spans, first = [], now()
    for name, requests in segments(case.brief):
        begin = now()
        await client.segment(name, requests)
        spans.append({"segment": name, "begin_s": begin, "end_s": now(), "requests": len(requests)})
        await engine.reset_prefix_cache()
        await asyncio.sleep(0.05)
    print(f"[{case.name}] segments done in {now() - first:.1f} s", flush=True)
    await core.call_utility_async("write_step_log", str(out))
    await engine.collective_rpc("write_worker_log", args=(str(out),))
    frontend_log.write(str(out))
    pq.write_table(pa.Table.from_pylist([asdict(o) for o in client.outcomes]), out / "requests.parquet")
    (out / "segments.json").write_text(json.dumps(spans, indent=1))
    if case.scenes:
        await record_scenes(engine, client, out / "scenes", "tensor_parallel_size" in case.engine_args)
    print(f"[{case.name}] all done in {now() - first:.1f} s", flush=True)
    engine.shutdown()


async def record_scenes(engine: Any, client: Client, out: Path, few: bool) -> None:
    """Trace decode batches, lone prefills and a mixed batch."""
    for batch in SCENE_DECODES[::4] if few else SCENE_DECODES:
        requests = [Request(0.0, client.rng.randint(150, 450), 60) for _ in range(batch)]
        await trace_decode(engine, client, requests, out / f"decode_{batch}", 0.06)
    for tokens in SCENE_PREFILLS[2::4] if few else SCENE_PREFILLS:
        prompts = [Request(0.0, min(tokens, 4000), 2) for _ in range(max(1, tokens // 4000))]
        await trace(engine, client, prompts, out / f"prefill_{tokens}")
    await trace(engine, client, [Request(0.0, 60, 2) for _ in range(16)], out / "prefill_16x60")


async def trace(engine: Any, client: Client, requests: list[Request], path: Path) -> None:
    await engine.collective_rpc("start_scene")
    await client.segment(path.name, requests)
    await engine.collective_rpc("stop_scene", args=(str(path),))
    await engine.reset_prefix_cache()


async def trace_decode(
    engine: Any, client: Client, requests: list[Request], path: Path, seconds: float
) -> None:
    first = len(client.outcomes)
    task = asyncio.create_task(client.segment(path.name, requests))
    while len(client.outcomes) < first + len(requests) or not all(
        outcome.token_times_s for outcome in client.outcomes[first:]
    ):
        await asyncio.sleep(0.005)
    await engine.collective_rpc("start_scene")
    await asyncio.sleep(seconds)
    # A prefill amid the decodes, so that the scene ends with a mixed batch.
    await client.segment(f"{path.name}_mixed", [Request(0.0, 700, 1)])
    await engine.collective_rpc("stop_scene", args=(str(path),))
    await task
    await asyncio.sleep(0.05)
    await engine.reset_prefix_cache()


def describe(config: Any, start_s: float) -> dict[str, Any]:
    """Say where and with what an engine runs."""
    import torch
    import vllm

    cache, scheduler = config.cache_config, config.scheduler_config
    return {
        "engine": "vllm",
        "engine_version": vllm.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "gpu": gpu_query("name,driver_version,memory.total,memory.used,memory.reserved"),
        "recorded_at": time.strftime("%Y-%m-%d", time.gmtime()),
        "environment": {name: value for name, value in os.environ.items() if name.startswith("VLLM_")},
        "engine_start_s": start_s,
        "num_layers": config.model_config.hf_config.num_hidden_layers,
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        "resolved": {
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "async_scheduling": scheduler.async_scheduling,
            "num_gpu_blocks": cache.num_gpu_blocks,
            "block_size": cache.block_size,
            "enable_prefix_caching": cache.enable_prefix_caching,
            "policy": scheduler.policy,
            "enable_chunked_prefill": scheduler.enable_chunked_prefill,
            "gpu_memory_utilization": cache.gpu_memory_utilization,
            "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
            "cudagraph_capture_sizes": config.compilation_config.cudagraph_capture_sizes,
        },
    }


def cpu_name() -> str:
    """The CPU as /proc/cpuinfo names it."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return f"{fields.get('model name', '?')} (family {fields.get('cpu family')} model {fields.get('model')})"


def gpu_query(fields: str) -> list[str]:
    """nvidia-smi's answer, a line a GPU, empty where there is none."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[:-1]


def memory_of_a_context(out: Path) -> None:
    """Write what a bare CUDA context, PyTorch's first kernels and a GEMM take of the GPU's memory."""
    facts: dict[str, Any] = {
        "before_context": gpu_query("memory.total,memory.used,memory.free,memory.reserved")
    }
    import torch

    def record(name: str) -> None:
        free, total = torch.cuda.mem_get_info()
        facts[name] = {"free": free, "total": total, "torch_reserved": torch.cuda.memory_reserved()}

    torch.cuda.init()
    torch.cuda.set_device(0)
    record("after_context")
    tensor = torch.empty(1, device="cuda")
    record("after_first_allocation")
    tensor.fill_(1)
    torch.cuda.synchronize()
    record("after_first_kernel")
    matrix = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16)
    matrix @ matrix
    torch.cuda.synchronize()
    record("after_first_gemm")
    out.mkdir(parents=True, exist_ok=True)
    (out / "context_memory.json").write_text(json.dumps(facts, indent=1))


def convert_scenes(folder: Path) -> None:
    """Replace the traces in a folder by three Parquet files: activities, calls, steps."""
    from revati.profile.scenes import read_scene

    tables: dict[str, list[pa.Table]] = {"activities": [], "calls": [], "steps": []}
    for trace_path in sorted(folder.glob("*.trace.json")):
        scene = trace_path.name.removesuffix(".trace.json")
        for kind, table in zip(tables, read_scene(folder / scene), strict=True):
            if len(table):
                tables[kind].append(table.append_column("scene", pa.array([scene] * len(table))))
        trace_path.unlink()
        (folder / f"{scene}.steps.json").unlink()
    for kind, parts in tables.items():
        pq.write_table(
            pa.concat_tables(parts, promote_options="permissive"),
            folder / f"{kind}.parquet",
            compression="zstd",
        )


def missing_plugins() -> list[str]:
    """The logging plug-ins that engines started here would not find."""
    plugins = entry_points(group="vllm.general_plugins").names
    return [name for name in PLUGINS if name not in plugins]


def run(arguments: argparse.Namespace) -> int:
    """Run each engine in a process of its own; a failing one doesn't stop the others."""
    if missing := missing_plugins():
        print(f"no vLLM plug-in {', '.join(missing)}: {INSTALL_HINT}", file=sys.stderr)
        return 2
    failed = []
    for name in arguments.engine:
        command = [sys.executable, "-m", __spec__.name, "engine", "--name", name, "--out", str(arguments.out)]
        code = subprocess.run(command, env=os.environ | {"REVATI_STEP_LOG": "1"}).returncode
        if code:
            failed.append(name)
            print(f"[{name}] failed with exit status {code}", flush=True)
    return 1 if failed else 0


def run_loop(main: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine on the event loop that vLLM's server uses."""
    try:
        from uvloop import run as run_uvloop
    except ImportError:
        asyncio.run(main)
    else:
        run_uvloop(main)


def run_one(arguments: argparse.Namespace) -> int:
    """Run one engine in this process."""
    case, out = CASES[arguments.name], arguments.out / arguments.name
    run_loop(run_engine(case, out, arguments.out / "models"))
    if case.scenes:
        convert_scenes(out / "scenes")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run engines on this machine's GPU and log their steps")
    runner.add_argument("--out", type=Path, required=True, help="folder for the logs")
    runner.add_argument("--engine", nargs="+", choices=sorted(CASES), default=list(DEFAULT_CASES))
    one = commands.add_parser("engine", help="run one engine in this process (used by run)")
    one.add_argument("--name", choices=sorted(CASES), required=True)
    one.add_argument("--out", type=Path, required=True)
    memory = commands.add_parser("memory", help="record the memory of a bare CUDA context")
    memory.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.command == "run":
        return run(arguments)
    if arguments.command == "engine":
        return run_one(arguments)
    memory_of_a_context(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
