"""Real SGLang on real GPUs: measured runs, step logs for a host table, and kernel scenes.

    python -m revati.profile.sglang_runs --out DIR --engine tp1 [--gpu h200] [--gpus 0] [--repeats 1]

One engine with SGLang's default settings and dummy weights serves, in this order: its workloads in rounds
(a folder a run, named and written as `revati.validate` reads them), the synthetic segments of
`revati.profile.host_calibration` (``DIR/host_<engine>``) and scenes under PyTorch's profiler
(``DIR/scenes_<engine>``).  Results are written as they come.  Latencies count from the scheduled arrival;
the load generator runs in the process of SGLang's tokenizer manager, without HTTP and without a tokenizer.
The process must find the plug-ins `revati_step_log` and `revati_scenes` (group ``sglang.srt.plugins``).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from revati.deployment.prompts import Turns
from revati.profile.host_client import Client, Outcome, measured_metrics, requests_table
from revati.profile.host_engine import convert_scenes
from revati.profile.host_load import EngineCase, Request, requests_of, segments, write_model
from revati.profile.host_probe import python_probes
from revati.profile.machine import cpu_name, gpu_query
from revati.profile.sglang_cases import CASES, SEED, Case
from revati.profile.truth.cases import Load

now = time.monotonic
# Needs no symmetric memory, hence no NVLink multicast; the launch command says the same.
ENVIRONMENT = {"SGLANG_OPT_USE_CUSTOM_ALL_REDUCE_V2": "0"}


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--engine", choices=sorted(CASES), required=True)
    parser.add_argument("--gpu", default="h200", help="what conf/gpu calls these GPUs")
    parser.add_argument("--gpus", help="CUDA_VISIBLE_DEVICES of this engine, such as 1,2")
    parser.add_argument("--loads", nargs="*", metavar="NAME", help="only these of the engine's workloads")
    parser.add_argument("--repeats", type=int, default=1, help="serve each workload so often, in rounds")
    parser.add_argument("--scale", type=float, default=1.0, help="share of each workload's requests")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="further engine arguments")
    parser.add_argument("--layers", type=int, help="decoder layers instead of the model's")
    parser.add_argument("--only", choices=("runs", "host", "scenes"), nargs="*")
    arguments = parser.parse_args(argv)
    if arguments.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = arguments.gpus
    os.environ.update(ENVIRONMENT, REVATI_STEP_LOG="1")
    case = CASES[arguments.engine]
    case.engine_args.update(
        {name: json.loads(value) for name, _, value in (s.partition("=") for s in arguments.set)}
    )
    known = [load.name for load in case.loads]
    if unknown := set(arguments.loads or ()) - set(known):
        parser.error(f"--loads {' '.join(sorted(unknown))}; accepted: {' '.join(known)}")
    Session(arguments, case).run()
    return 0


class SglangClient(Client):
    """A client of SGLang's `Engine`."""

    def __init__(self, engine: Any, vocabulary: int) -> None:
        super().__init__(vocabulary, SEED)
        self.engine = engine

    async def follow(self, prompt: list[int], outcome: Outcome) -> list[int]:
        answer: list[int] = []
        sampling = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": outcome.output_tokens}
        stream = await self.engine.async_generate(input_ids=prompt, sampling_params=sampling, stream=True)
        async for output in stream:
            at, answer = now(), output["output_ids"]
            outcome.token_times_s.extend([at] * (len(answer) - len(outcome.token_times_s)))
            outcome.cached_tokens = int(output["meta_info"]["cached_tokens"])
        if len(answer) != outcome.output_tokens:
            print(f"{outcome.segment}: {len(answer)} tokens instead of {outcome.output_tokens}", flush=True)
        return answer


class Session:
    """One engine and what is done with it."""

    def __init__(self, arguments: argparse.Namespace, case: Case) -> None:
        from sglang.srt.entrypoints.engine import Engine

        self.name: str = arguments.engine
        self.gpu: str = arguments.gpu
        self.repeats: int = arguments.repeats
        self.case, self.out, self.scale = case, arguments.out, arguments.scale
        self.loads = [load for load in case.loads if load.name in (arguments.loads or [load.name])]
        self.parts = arguments.only or ("runs", "host", "scenes")
        changes = {"num_hidden_layers": arguments.layers} if arguments.layers else {}
        model = write_model(EngineCase(self.name, case.model, changes), self.out / "models")
        self.config = json.loads((model / "config.json").read_text())
        begin = now()
        self.engine = Engine(
            model_path=str(model),
            load_format="dummy",
            skip_tokenizer_init=True,
            log_level="info",
            **case.engine_args,
        )
        self.start_s = now() - begin
        self.say(f"started in {self.start_s:.1f} s")
        self.folder = self.out / "log"  # of the step logs in progress
        self.client = SglangClient(self.engine, self.config["vocab_size"])
        self.python_us: dict[str, dict[str, float]] = {}

    def run(self) -> None:
        try:
            self.engine.loop.run_until_complete(self._all())
        finally:
            self.engine.shutdown()

    def say(self, text: str) -> None:
        print(f"[{self.name} {now():.1f}] {text}", flush=True)

    async def _all(self) -> None:
        await self.client.segment("warmup", [Request(0.05 * i, 30 * i + 8, 8) for i in range(24)])
        await self.client.segment("warmup", [Request(0.0, 64, 32) for _ in range(64)])
        self.python_us = python_probes()  # how fast this host is
        gc.collect()
        gc.freeze()
        if "runs" in self.parts:
            for repeat in range(self.repeats):
                for load in self.loads:
                    await self.measured_run(load, repeat)
        if "host" in self.parts:
            await self.calibrate()
        if "scenes" in self.parts:
            await self.scenes()

    async def flush(self) -> None:
        await self.engine.tokenizer_manager.flush_cache()

    async def measured_run(self, load: Load, repeat: int) -> None:
        """Serve one workload and write it like the shared measured runs; repeats count from 0."""
        workload = load.requests()
        workload = workload.first(max(2, int(len(workload) * self.scale)))
        requests = requests_of(workload, self.config["vocab_size"])
        await self.flush()
        self.engine.collective_rpc("clear_step_log")
        name = self.run_name(load, repeat)
        outcomes = await self.client.segment(name, requests, Turns(workload))
        start = outcomes[0].arrival_s - requests[0].arrival_s
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        table = requests_table(outcomes, start, workload)
        pq.write_table(table, folder / "requests.parquet", compression="zstd")
        await self.write_steps(folder, start)
        engine = self.describe()
        description = engine | {
            "case": name,
            "workload": load.description() | {"num_requests": len(workload)},
            "measured": measured_metrics(table, engine["num_gpus"]),
        }
        (folder / "run.json").write_text(json.dumps(description, indent=1, default=str))
        self.say(f"{name}: {json.dumps(description['measured'])}")

    def run_name(self, load: Load, repeat: int) -> str:
        """As validation/runs has it, where GPUs other than H200s are in the name."""
        gpu = "" if self.gpu == "h200" else f"{self.gpu}-"
        ranks = f"tp{self.case.parallel('tp')}_pp{self.case.parallel('pp')}"
        name = f"{gpu}sglang-{self.case.model}_{ranks}_{load.name}"
        return name + (f"_rep{repeat + 1}" if repeat else "")

    async def calibrate(self) -> None:
        """Serve the synthetic segments of the host calibration, under the step log."""
        folder = self.out / f"host_{self.name}"
        folder.mkdir(parents=True, exist_ok=True)
        await self.flush()
        self.client.outcomes.clear()
        self.engine.collective_rpc("clear_step_log")
        spans, first = [], now()
        for name, requests in segments(self.case.brief):
            begin = now()
            await self.client.segment(name, requests[: max(1, int(len(requests) * self.scale))])
            spans.append({"segment": name, "begin_s": begin, "end_s": now(), "requests": len(requests)})
            await self.flush()
            await asyncio.sleep(0.05)
        await self.write_steps(folder, 0.0)
        rows = [asdict(outcome) for outcome in self.client.outcomes]
        pq.write_table(pa.Table.from_pylist(rows), folder / "requests.parquet", compression="zstd")
        (folder / "segments.json").write_text(json.dumps(spans, indent=1))
        (folder / "run.json").write_text(json.dumps(self.describe(), indent=1, default=str))
        self.say(f"host segments: {now() - first:.1f} s")

    async def scenes(self) -> None:
        """Trace lone prefills, and decode batches that a prefill joins at the end."""
        folder, first = self.out / f"scenes_{self.name}", now()
        await self.flush()
        for tokens in self.case.prefills:
            lone = [Request(0.0, min(tokens, 4000), 2) for _ in range(max(1, tokens // 4000))]
            self.engine.collective_rpc("start_scene")
            await self.client.segment(f"prefill_{tokens}", lone)
            self.engine.collective_rpc("stop_scene", path=str(folder / f"prefill_{tokens}"))
            await self.flush()
        for prompts in self.case.decode_prompts:
            for batch in self.case.decodes:
                await self.trace_decode(batch, prompts, folder / f"decode_{batch}_of_{prompts[0]}")
        await asyncio.sleep(1.0)  # later pipeline stages write after the answer
        (folder / "run.json").write_text(json.dumps(self.describe(), indent=1, default=str))
        convert_scenes(folder)
        self.say(f"scenes: {now() - first:.1f} s")

    async def trace_decode(self, batch: int, prompts: tuple[int, int], path: Path) -> None:
        first, outcomes = len(self.client.outcomes), self.client.outcomes
        requests = [Request(0.0, self.client.rng.randint(*prompts), 120) for _ in range(batch)]
        task = asyncio.create_task(self.client.segment(path.name, requests))
        while len(outcomes) < first + batch or not all(o.token_times_s for o in outcomes[first:]):
            await asyncio.sleep(0.005)
        self.engine.collective_rpc("start_scene")
        await asyncio.sleep(0.08)
        await self.client.segment(f"{path.name}_mixed", [Request(0.0, 700, 1)])
        self.engine.collective_rpc("stop_scene", path=str(path))
        await task
        await asyncio.sleep(0.05)
        await self.flush()

    async def write_steps(self, folder: Path, start_s: float) -> None:
        """Have every rank write its log; rank 0's, from ``start_s`` on, becomes steps.parquet."""
        self.engine.collective_rpc("write_step_log", folder=str(folder))
        ranks = self.case.parallel("tp") * self.case.parallel("pp")
        deadline = now() + 10
        while len(list(folder.glob("steps_*.parquet"))) < ranks and now() < deadline:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        for path in folder.glob("steps_*.parquet"):
            table = pq.read_table(path)
            for index, name in enumerate(table.column_names):
                if name.endswith("_s"):
                    table = table.set_column(index, name, pc.subtract(table[name], start_s))
            pq.write_table(table, path, compression="zstd")
        shutil.copy(folder / "steps_tp0_pp0.parquet", folder / "steps.parquet")

    def describe(self) -> dict[str, Any]:
        """Where and with what the engine ran."""
        import sglang
        import torch

        settings = self.engine.server_args
        info = self.engine._scheduler_init_result.scheduler_infos[0]
        tokens = int(info["max_total_num_tokens"])
        return {
            "engine": "sglang",
            "engine_version": sglang.__version__,
            "interface": "Engine.async_generate, scheduler in a process of its own",
            "model": self.case.model,
            "num_layers": self.config["num_hidden_layers"],
            "gpu": self.gpu,
            "num_gpus": settings.tp_size * settings.pp_size,
            "tensor_parallel_size": settings.tp_size,
            "pipeline_parallel_size": settings.pp_size,
            "engine_args": {
                name: value
                for name, value in self.case.engine_args.items()
                if name not in ("tp_size", "pp_size")
            },
            "resolved": {
                **{key: value for key, value in info.items() if isinstance(value, int | float | str)},
                "kv_cache_size_tokens": tokens,
                "block_size": settings.page_size,
                "num_gpu_blocks": tokens // settings.page_size,
                **{
                    name: getattr(settings, name)
                    for name in (
                        "mem_fraction_static",
                        "chunked_prefill_size",
                        "max_prefill_tokens",
                        "schedule_policy",
                        "schedule_conservativeness",
                        "attention_backend",
                        "sampling_backend",
                        "disable_overlap_schedule",
                        "disable_radix_cache",
                        "enable_mixed_chunk",
                        "disable_custom_all_reduce",
                        "pp_max_micro_batch_size",
                    )
                },
                "cuda_graph_config": str(getattr(settings, "cuda_graph_config", None)),
            },
            "environment": {
                **{
                    name: value for name, value in os.environ.items() if name.startswith(("SGLANG_", "NCCL_"))
                },
                "flashinfer": "not installed (norms: sgl_kernel)",
                "host": f"{cpu_name()}, {os.cpu_count()} vCPUs",
                "gpus": gpu_query("name,driver_version,memory.total,memory.used,memory.reserved"),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "python_us": self.python_us,
            },
            "recorded_at": time.strftime("%Y-%m-%d", time.gmtime()),
            "engine_start_s": self.start_s,
        }


if __name__ == "__main__":
    sys.exit(main())
