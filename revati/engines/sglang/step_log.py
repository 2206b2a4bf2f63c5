"""A step log of SGLang's scheduler: host timestamps of each phase of each turn of its event loop.

An `sglang.srt.plugins` plug-in that does nothing unless the environment has ``REVATI_STEP_LOG=1``.  It
wraps methods of the scheduler through SGLang's `HookRegistry`.  ``Engine.collective_rpc("write_step_log",
folder=…)`` has every rank write ``steps_tp<rank>_pp<rank>.parquet``; ``clear_step_log`` forgets the rows.
Times are CLOCK_MONOTONIC seconds.  Turns that neither launch nor process a batch are not kept.

Under overlap, a turn launches one batch and processes the results of the one before: the ``processed_*``
columns are of the latter, ``launched_step`` of a row with results is the turn that launched them.

A stage of a pipeline has a row for each turn of a microbatch, with what it exchanges with its neighbours in
`PIPELINE_TIME_COLUMNS`; the others leave those empty.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from revati.engines.sglang.batch import lengths_of

ENABLE_VARIABLE = "REVATI_STEP_LOG"

TIME_COLUMNS = (
    "recv_begin_s",
    "recv_end_s",  # messages taken from the sockets
    "input_end_s",  # and made into requests
    "schedule_begin_s",
    "schedule_end_s",
    "run_begin_s",
    "run_end_s",  # forward, sampling and the copy of its results are launched
    "process_begin_s",
    "wake_s",  # the results are on the host
    "process_end_s",
    "send_begin_s",  # outputs into the socket, inside of processing
    "send_end_s",
    "end_s",  # the next turn begins
)
PIPELINE_TIME_COLUMNS = (
    "requests_sent_s",  # messages handed to the next stage
    "hidden_begin_s",
    "hidden_arrived_s",  # the previous stage has said that it sends hidden states
    "hidden_end_s",  # and their receipt is launched
    "outputs_begin_s",
    "outputs_sent_s",  # sampled tokens of an earlier microbatch handed to the next stage
    "outputs_arrived_s",  # those of the next microbatch announced by the previous stage
    "outputs_end_s",  # and their receipt launched
    "hidden_sent_begin_s",
    "hidden_sent_s",  # hidden states handed to the next stage
)
COUNT_COLUMNS = (
    "step",
    "received",  # messages
    "requests",
    "tokens",
    "prefill_requests",
    "prefill_tokens",
    "context_tokens",
    "running",
    "waiting",
    "free_kv_tokens",
    "graph",  # 1: the forward pass replayed a CUDA graph, -1: nothing launched
    "processed_requests",
    "processed_tokens",
    "launched_step",
    "gpu_was_done",  # 1: the results were ready before the wait, -1: no results
    "finished_requests",
    "send_wait_us",  # for earlier sends to the next stage
)
TEXT_COLUMNS = ("mode", "processed_mode")  # EXTEND, DECODE, MIXED or ""

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_COMPONENTS = "sglang.srt.managers.scheduler_components"

Row = dict[str, Any]
now = time.monotonic


def register() -> None:
    """Make this process's scheduler keep a step log (the plug-in's entry point)."""
    if not os.environ.get(ENABLE_VARIABLE):
        return
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    log = StepLog()
    for target, hook in {
        f"{_COMPONENTS}.request_receiver.SchedulerRequestReceiver.recv_requests": log.receive,
        f"{_SCHEDULER}.process_input_requests": log.take_inputs,
        f"{_SCHEDULER}.get_next_batch_to_run": log.schedule,
        f"{_SCHEDULER}.run_batch": log.run,
        f"{_SCHEDULER}.process_batch_result": log.process,
        f"{_COMPONENTS}.output_sender.SenderWrapper.send_output": log.send,
        f"{_SCHEDULER}._pp_send_pyobj_to_next_stage": log.send_requests,
        f"{_SCHEDULER}._pp_recv_proxy_tensors": log.receive_hidden,
        f"{_SCHEDULER}._pp_send_recv_and_preprocess_output_tensors": log.exchange_outputs,
        f"{_SCHEDULER}._pp_send_dict_to_next_stage": log.send_tensors,
        f"{_SCHEDULER}._pp_commit_comm_work": log.await_sends,
        "sglang.srt.distributed.parallel_state.GroupCoordinator.recv_object": log.receive_object,
    }.items():
        HookRegistry.register(target, hook, HookType.AROUND)
    Scheduler.write_step_log = lambda scheduler, folder: log.write(folder)
    Scheduler.clear_step_log = lambda scheduler: log.clear()


class StepLog:
    """Rows of one scheduler process; the methods are AROUND hooks."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._count = 0
        self._row = _empty_row(0)
        self._launched: dict[int, tuple[int, int]] = {}  # by result: step, tokens
        self._arrived_s = math.nan  # the last announcement of tensors

    def clear(self) -> None:
        """Forget the rows."""
        self.rows = []

    def write(self, folder: str) -> None:
        """Write this rank's rows below ``folder`` and forget them."""
        from sglang.srt.runtime_context import get_parallel

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        name = f"steps_tp{get_parallel().tp_rank}_pp{get_parallel().pp_rank}.parquet"
        pq.write_table(steps_table(self.rows), path / name)
        self.clear()

    def receive(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        begin = now()
        if self._row["requests"] or self._row["processed_requests"]:
            self._row["end_s"] = begin
            self.rows.append(self._row)
        self._count += 1
        self._row = _empty_row(self._count)
        self._row["recv_begin_s"] = begin
        received = original(*args, **kwargs)
        self._row["recv_end_s"] = now()
        self._row["received"] = len(received or ())
        return received

    def take_inputs(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self._row["input_end_s"] = now()
        return result

    def schedule(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        row = self._row
        row["schedule_begin_s"] = now()
        plan = original(scheduler, *args, **kwargs)
        row["schedule_end_s"] = now()
        if batch := plan.batch_to_run:
            lengths = lengths_of(batch)
            row["mode"] = batch.forward_mode.name
            row["requests"] = len(lengths.query_lens)
            row["tokens"] = sum(lengths.query_lens)
            row["prefill_requests"] = lengths.num_prefills
            row["prefill_tokens"] = lengths.prompt_tokens
            row["context_tokens"] = sum(lengths.context_lens)
            row["running"] = len(plan.running_batch.reqs)
            row["waiting"] = len(scheduler.waiting_queue)
            row["free_kv_tokens"] = scheduler.token_to_kv_pool_allocator.available_size()
        return plan

    def run(self, original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        row = self._row
        row["run_begin_s"] = now()
        result = original(scheduler, batch, *args, **kwargs)
        row["run_end_s"] = now()
        row["graph"] = int(bool(result.can_run_cuda_graph))
        self._launched[id(result)] = row["step"], row["tokens"]
        return result

    def process(
        self, original: Callable[..., Any], scheduler: Any, batch: Any, result: Any, *args: Any, **kwargs: Any
    ) -> Any:
        row = self._row
        row["process_begin_s"] = now()
        if (done := getattr(result, "copy_done", None)) is not None:
            row["gpu_was_done"] = int(done.query())
            done.synchronize()
        row["wake_s"] = now()
        answer = original(scheduler, batch, result, *args, **kwargs)
        row["process_end_s"] = now()
        row["processed_mode"] = batch.forward_mode.name
        row["processed_requests"] = len(batch.reqs)
        row["launched_step"], row["processed_tokens"] = self._launched.pop(id(result), (-1, 0))
        row["finished_requests"] = sum(request.finished() for request in batch.reqs)
        return answer

    def send(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        row = self._row
        if math.isnan(row["send_begin_s"]):
            row["send_begin_s"] = now()
        result = original(*args, **kwargs)
        row["send_end_s"] = now()
        return result

    def send_requests(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self._row["requests_sent_s"] = now()
        return result

    def receive_hidden(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._exchange("hidden", original, *args, **kwargs)

    def exchange_outputs(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._exchange("outputs", original, *args, **kwargs)

    def _exchange(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._arrived_s = math.nan
        self._row[f"{name}_begin_s"] = now()
        result = original(*args, **kwargs)
        self._row[f"{name}_end_s"] = now()
        self._row[f"{name}_arrived_s"] = self._arrived_s
        return result

    def receive_object(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self._arrived_s = now()
        return result

    def send_tensors(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        begin = now()
        result = original(*args, **kwargs)
        if kwargs.get("msg_type") == "proxy":
            self._row["hidden_sent_begin_s"], self._row["hidden_sent_s"] = begin, now()
        else:
            self._row["outputs_sent_s"] = now()
        return result

    def await_sends(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        begin = now()
        result = original(*args, **kwargs)
        self._row["send_wait_us"] += round(1e6 * (now() - begin))
        return result


def steps_table(rows: list[Row]) -> pa.Table:
    """The step log as an Arrow table: times float64, counts int64, modes string."""
    kinds = (
        dict.fromkeys(TIME_COLUMNS + PIPELINE_TIME_COLUMNS, pa.float64())
        | dict.fromkeys(COUNT_COLUMNS, pa.int64())
        | dict.fromkeys(TEXT_COLUMNS, pa.string())
    )
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()})


def _empty_row(step: int) -> Row:
    row: Row = dict.fromkeys(TIME_COLUMNS + PIPELINE_TIME_COLUMNS, math.nan)
    row |= dict.fromkeys(COUNT_COLUMNS, 0)
    row |= {"step": step, "launched_step": -1, "graph": -1, "gpu_was_done": -1}
    return row | dict.fromkeys(TEXT_COLUMNS, "")
