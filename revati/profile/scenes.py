"""Kernel scenes: what the GPU and CUDA's API do during a few engine steps, from PyTorch's profiler.

`SceneRecorder` is a vLLM worker extension (`worker_extension_cls`); its methods are called through
`collective_rpc`. `read_scene` turns the trace that it leaves into Arrow tables.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

STEP_MARK = "revati_step"


class SceneRecorder:
    """Methods that a vLLM worker gains."""

    def start_scene(self) -> None:
        """Start to trace kernels, and to note each step's query and context lengths."""
        import torch

        worker: Any = self
        if worker.rank != 0:
            return  # ranks do the same work
        self._scene_steps: list[dict[str, Any]] = []
        execute, sample = worker.execute_model, worker.sample_tokens

        def marked_execute(scheduler_output: Any) -> Any:
            self._scene_steps.append(batch_of(scheduler_output))
            with torch.profiler.record_function(f"{STEP_MARK} {len(self._scene_steps) - 1}"):
                return execute(scheduler_output)

        def marked_sample(grammar_output: Any) -> Any:
            with torch.profiler.record_function(f"{STEP_MARK} {len(self._scene_steps) - 1} sample"):
                return sample(grammar_output)

        worker.execute_model, worker.sample_tokens = marked_execute, marked_sample
        self._scene = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        )
        self._scene.start()

    def stop_scene(self, path: str) -> int:
        """Write <path>.trace.json and <path>.steps.json; return the number of steps noted."""
        worker: Any = self
        if worker.rank != 0:
            return 0
        self._scene.stop()
        del worker.execute_model, worker.sample_tokens
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._scene.export_chrome_trace(f"{path}.trace.json")
        Path(f"{path}.steps.json").write_text(json.dumps(self._scene_steps))
        return len(self._scene_steps)


def batch_of(scheduler_output: Any) -> dict[str, list[int]]:
    """Return a step's query lengths and context lengths (the query included), request by request."""
    scheduled = scheduler_output.num_scheduled_tokens
    computed = {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs}
    cached = scheduler_output.scheduled_cached_reqs
    computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return {
        "query_lens": list(scheduled.values()),
        "context_lens": [computed[request] + count for request, count in scheduled.items()],
    }


def read_scene(path: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Read a scene: its GPU activities, its CUDA API calls, its steps.

    Every activity and call carries the index of the step whose host code launched it (-1: none). Times
    and durations are in µs on the trace's clock; sizes in bytes.
    """
    events = json.loads(Path(f"{path}.trace.json").read_text())["traceEvents"]
    steps = json.loads(Path(f"{path}.steps.json").read_text())
    marks = [
        (e["ts"], e["ts"] + e["dur"], int(e["name"].split()[1]))
        for e in events
        if e.get("cat") == "user_annotation" and e["name"].startswith(STEP_MARK)
    ]
    marks.sort()

    def step_at(time_us: float) -> int:
        return next((step for begin, end, step in marks if begin <= time_us <= end), -1)

    calls, launched_by = [], {}
    for e in events:
        if e.get("cat") in ("cuda_runtime", "cuda_driver"):
            step, correlation = step_at(e["ts"]), e.get("args", {}).get("correlation", -1)
            launched_by[correlation] = step
            calls.append(
                {
                    "name": e["name"],
                    "ts_us": e["ts"],
                    "dur_us": e.get("dur", 0.0),
                    "correlation": correlation,
                    "tid": int(e.get("tid", -1)),
                    "step": step,
                }
            )
    activities = []
    for e in events:
        if e.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        args = e.get("args", {})
        grid, block = args.get("grid", [0, 0, 0]), args.get("block", [0, 0, 0])
        activities.append(
            {
                "kind": e["cat"],
                "name": e["name"],
                "ts_us": e["ts"],
                "dur_us": e["dur"],
                "grid_x": grid[0],
                "grid_y": grid[1],
                "grid_z": grid[2],
                "block_x": block[0],
                "block_y": block[1],
                "block_z": block[2],
                "shared_bytes": args.get("shared memory", 0),
                "registers": args.get("registers per thread", 0),
                "stream": args.get("stream", -1),
                "bytes": args.get("bytes", 0),
                "correlation": args.get("correlation", -1),
                "graph_node": args.get("graph node id", 0),
                "step": launched_by.get(args.get("correlation", -1), -1),
            }
        )
    begins = {step: begin for begin, _, step in reversed(marks)}
    rows = [
        {"step": i, "begin_us": begins.get(i, float("nan")), **lengths} for i, lengths in enumerate(steps)
    ]
    return pa.Table.from_pylist(activities), pa.Table.from_pylist(calls), pa.Table.from_pylist(rows)
