"""A log of vLLM's engine steps: host timestamps of every phase, one row a step.

A `vllm.general_plugins` plug-in. Without the environment variable REVATI_STEP_LOG it does nothing. With
it (any value but the empty string), an `EngineCore` times its own methods and `write_step_log(folder)`
becomes callable on it, also through `engine_core.call_utility_async("write_step_log", folder)`.

Times are CLOCK_MONOTONIC in seconds, comparable between processes of one machine. In asynchronous
scheduling the update inside a step belongs to an earlier step; `updated_requests` counts its requests.

`execute_faults` tells of a cost that models differ by. CPython keeps frames in chunks of 16 KiB; where the
frames of the compiled model end shortly before a chunk's end, its calls for each layer map a new chunk,
fault its pages in and unmap it again: launching a prefill takes up to 1.6 times as long (docs/accuracy.md).
"""

import math
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ENABLE_VARIABLE = "REVATI_STEP_LOG"

# The columns shared with measured runs come first, then what only the calibration of host costs needs.
TIME_COLUMNS = (
    "step_begin_s",
    "schedule_begin_s",
    "schedule_end_s",
    "execute_begin_s",
    "execute_end_s",
    "sample_end_s",
    "update_begin_s",
    "update_end_s",
    "step_end_s",
    "input_begin_s",  # the loop enters its input queue
    "input_first_s",  # the first message is taken out of it
    "input_end_s",
    "wait_begin_s",  # the step starts to wait for the outputs of an earlier one
    "wake_s",  # the GPU's copy event released it
    "output_end_s",  # outputs are in the output thread's queue
)
COUNT_COLUMNS = (
    "scheduled_tokens",
    "scheduled_requests",
    "prefill_requests",
    "prefill_tokens",
    "decode_requests",
    "running",
    "waiting",
    "free_kv_blocks",
    "step",
    "added_requests",
    "new_requests",  # scheduled for the first time
    "finished_requests",
    "updated_requests",
    "update_step",  # the step whose outputs this row's update handles, -1 without an update
    "gpu_was_done",  # 1: the outputs were ready before the wait, 0: not, -1: unknown or no wait
    "padded_tokens",
    "execute_faults",  # minor page faults of the thread while it executes
)
GRAPH_COLUMN = "graph"  # FULL, PIECEWISE or NONE where the worker runs in this process, else ""

Row = dict[str, Any]
now = time.monotonic


def register() -> None:
    """Make every engine core of this process keep a step log (the plug-in's entry point)."""
    if not os.environ.get(ENABLE_VARIABLE):
        return
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    if getattr(EngineCore, "_revati_step_log", False):
        return
    EngineCore._revati_step_log = True
    initialise = EngineCore.__init__
    dispatch = CudaGraphManager.dispatch

    def logged_init(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        StepLog().attach(self)

    def remembered_dispatch(self: Any, *args: Any, **kwargs: Any) -> Any:
        StepLog.last_graph = description = dispatch(self, *args, **kwargs)
        return description

    EngineCore.__init__ = logged_init
    CudaGraphManager.dispatch = remembered_dispatch


class StepLog:
    """Times the methods of one engine core by replacing them on the instance."""

    last_graph: Any = None  # what the worker's runner decided last, in this process

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.requests: list[Row] = []
        self.count = 0
        self.row: Row = _empty_row(0)
        self._of_output: dict[int, int] = {}

    def attach(self, core: Any) -> None:
        """Replace the timed methods on an initialised EngineCore."""
        self.scheduler = core.scheduler
        core.write_step_log = self.write
        core.clear_step_log = self.clear
        core.step_fn = self._around(core.step_fn, "step_begin_s", "step_end_s")
        core.scheduler.schedule = self._schedule(core.scheduler.schedule)
        core.scheduler.update_from_output = self._update(core.scheduler.update_from_output)
        core.model_executor.execute_model = self._execute(core.model_executor.execute_model)
        core.model_executor.sample_tokens = self._sample(core.model_executor.sample_tokens)
        if hasattr(core, "_process_input_queue"):
            core._process_input_queue = self._input(core._process_input_queue)
            core._handle_client_request = self._message(core._handle_client_request)
            core.preprocess_add_request = self._preprocess(core.preprocess_add_request)
            core._process_engine_step = self._engine_step(core._process_engine_step)

    def write(self, folder: str) -> int:
        """Write steps.parquet and core_requests.parquet into a folder and forget the rows.

        Returns the number of steps written.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        pq.write_table(steps_table(self.rows), path / "steps.parquet")
        pq.write_table(pa.Table.from_pylist(self.requests), path / "core_requests.parquet")
        written = len(self.rows)
        self.clear()
        return written

    def clear(self) -> None:
        """Forget the rows."""
        self.rows, self.requests = [], []

    def _around(self, method: Callable[..., Any], begin: str, end: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.row[begin] = now()
            try:
                return method(*args, **kwargs)
            finally:
                self.row[end] = now()

        return timed

    def _input(self, method: Callable[[], None]) -> Callable[[], None]:
        def timed() -> None:
            self.count += 1
            self.row = _empty_row(self.count)
            self.row["input_begin_s"] = now()
            method()
            self.row["input_end_s"] = now()

        return timed

    def _message(self, method: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def timed(request_type: Any, request: Any) -> None:
            begin = now()
            if math.isnan(self.row["input_first_s"]):
                self.row["input_first_s"] = begin
            method(request_type, request)
            if request_type.name == "ADD":
                self.row["added_requests"] += 1
                self.requests.append(
                    {
                        "request_id": request[0].request_id,
                        "event": "added",
                        "prompt_tokens": request[0].num_prompt_tokens,
                        "begin_s": begin,
                        "end_s": now(),
                        "step": self.row["step"],
                    }
                )

        return timed

    def _preprocess(self, method: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def timed(request: Any) -> Any:
            begin = now()
            result = method(request)
            self.requests.append(
                {
                    "request_id": request.request_id,
                    "event": "decoded",
                    "prompt_tokens": len(request.prompt_token_ids or ()),
                    "begin_s": begin,
                    "end_s": now(),
                    "step": self.row["step"],
                }
            )
            return result

        return timed

    def _schedule(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            row = self.row
            row["schedule_begin_s"] = now()
            output = method(*args, **kwargs)
            row["schedule_end_s"] = now()
            prefills, prefill_tokens = _prefills(output)
            row["scheduled_tokens"] = output.total_num_scheduled_tokens
            row["scheduled_requests"] = len(output.num_scheduled_tokens)
            row["prefill_requests"] = prefills
            row["prefill_tokens"] = prefill_tokens
            row["decode_requests"] = len(output.num_scheduled_tokens) - prefills
            row["running"], row["waiting"] = self.scheduler.get_request_counts()
            row["free_kv_blocks"] = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
            row["new_requests"] = len(output.scheduled_new_reqs)
            row["finished_requests"] = len(output.finished_req_ids)
            self._of_output[id(output)] = row["step"]
            return output

        return timed

    def _execute(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            row, StepLog.last_graph = self.row, None
            faults = page_faults()
            row["execute_begin_s"] = now()
            result = method(*args, **kwargs)
            row["execute_end_s"] = now()
            row["execute_faults"] = page_faults() - faults
            if (graph := StepLog.last_graph) is not None:
                row[GRAPH_COLUMN] = graph.cg_mode.name
                row["padded_tokens"] = graph.num_tokens
            return result

        return timed

    def _sample(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            future = method(*args, **kwargs)
            self.row["sample_end_s"] = now()
            if hasattr(future, "result"):
                future.result = self._result(future.result, future)
            return future

        return timed

    def _result(self, method: Callable[..., Any], future: Any) -> Callable[..., Any]:
        # Worker in this process: the event tells the GPU's end apart from building the output lists.
        event = getattr(getattr(future, "async_output", None), "copy_event", None)

        def timed(timeout: float | None = None) -> Any:
            row = self.row
            row["gpu_was_done"] = -1 if event is None else int(event.query())
            row["wait_begin_s"] = now()
            if event is not None:
                event.synchronize()
                row["wake_s"] = now()
            result = method(timeout)
            if event is None:
                row["wake_s"] = now()
            return result

        return timed

    def _update(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            row = self.row
            row["update_begin_s"] = now()
            result = method(scheduler_output, *args, **kwargs)
            row["update_end_s"] = now()
            row["updated_requests"] = len(scheduler_output.num_scheduled_tokens)
            row["update_step"] = self._of_output.pop(id(scheduler_output), -1)
            return result

        return timed

    def _engine_step(self, method: Callable[[], bool]) -> Callable[[], bool]:
        def timed() -> bool:
            row = self.row
            executed = method()
            row["output_end_s"] = now()
            self.rows.append(row)
            return executed

        return timed


def page_faults() -> int:
    """How many minor page faults the calling thread has had."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def steps_table(rows: list[Row]) -> pa.Table:
    """Return the step log as an Arrow table (times float64, counts int64)."""
    columns: dict[str, pa.Array] = {
        name: pa.array([row[name] for row in rows], pa.float64()) for name in TIME_COLUMNS
    }
    columns |= {name: pa.array([row[name] for row in rows], pa.int64()) for name in COUNT_COLUMNS}
    columns[GRAPH_COLUMN] = pa.array([row[GRAPH_COLUMN] for row in rows], pa.string())
    return pa.table(columns)


def _empty_row(step: int) -> Row:
    row: Row = dict.fromkeys(TIME_COLUMNS, math.nan)
    row |= dict.fromkeys(COUNT_COLUMNS, 0)
    row["step"], row["update_step"], row["gpu_was_done"] = step, -1, -1
    row[GRAPH_COLUMN] = ""
    return row


def _prefills(output: Any) -> tuple[int, int]:
    """Return how many scheduled requests compute prompt tokens, and how many such tokens in all."""
    requests, tokens = 0, 0
    for new in output.scheduled_new_reqs:
        requests += 1
        tokens += output.num_scheduled_tokens[new.req_id]
    cached = output.scheduled_cached_reqs
    for request_id, outputs in zip(cached.req_ids, cached.num_output_tokens, strict=True):
        if outputs == 0:
            requests += 1
            tokens += output.num_scheduled_tokens[request_id]
    return requests, tokens
