"""Starts a real vLLM engine, drives it through the calibration's load, and keeps its logs and scenes."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from revati.profile.host_client import Client, VllmClient, now
from revati.profile.host_load import AT_DEPTH, EngineCase, Request, at_depths, segments, write_model
from revati.profile.machine import describe
from revati.profile.scenes import SceneRecorder, read_scene
from revati.profile.stack_depth import StackDepth

SCENE_DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SCENE_PREFILLS = (16, 64, 128, 256, 512, 1024, 2048, 4000, 8000)


class WorkerExtension(SceneRecorder, StackDepth):
    """What a calibrated engine's workers gain."""


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


def run_loop(main: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine on the event loop that vLLM's server uses."""
    try:
        from uvloop import run as run_uvloop
    except ImportError:
        asyncio.run(main)
    else:
        run_uvloop(main)


async def run_engine(case: EngineCase, out: Path, models: Path) -> None:
    """Start one engine, drive it through all segments and scenes, write everything below `out`."""
    from revati.engines.vllm import frontend_log

    engine, config, start_s = start_engine(
        case.name, write_model(case, models), case.engine_args, f"{__name__}.{WorkerExtension.__name__}"
    )
    client = VllmClient(engine, int(config.model_config.get_vocab_size()))
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

    async def drive(name: str, requests: list[Request]) -> None:
        begin = now()
        await client.segment(name, requests)
        spans.append({"segment": name, "begin_s": begin, "end_s": now(), "requests": len(requests)})
        await engine.reset_prefix_cache()
        await asyncio.sleep(0.05)

    for name, requests in segments(case.brief):
        await drive(name, requests)
    if config.parallel_config.world_size == 1:
        for words, requests in at_depths():
            await engine.collective_rpc("deepen_stack", args=(words,))
            await drive(AT_DEPTH, requests)
        await engine.collective_rpc("deepen_stack", args=(0,))
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


def convert_scenes(folder: Path) -> None:
    """Replace the traces in a folder by three Parquet files: activities, calls, steps."""
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
