"""A warmed engine in a process of its own, which forks a child for every trial."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revati.deployment.inprocess import InProcessDeployment
from revati.deployment.prompts import make_requests
from revati.deployment.results import requests_table, too_weak
from revati.deployment.wire import TrialRequest, TrialResult, send_result
from revati.engines.base import InfeasibleError
from revati.engines.warm import EngineModule, WarmEngine, engine_module
from revati.virtual_time.host import PhaseRecord
from revati.workload import Workload

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel end this process when its parent ends, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_template(channel: socket.socket, first: TrialRequest, work_dir: Path) -> None:
    """Start the engine that ``first`` needs, then fork a child for each request.

    Requests come over ``channel``, each with the connection on which its result is awaited.  Returns when
    nobody can send any more and all trials have ended.
    """
    log_path = work_dir / "engine.log"
    redirect_output(log_path)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the engine's own subprocesses are waited for
    module = engine_module(first.spec.engine)
    refusal: TrialResult | None = None
    warm: WarmEngine | None = None
    try:
        warm = module.start(first.spec)
        gc.collect()
        gc.freeze()  # forked children share these pages
    except InfeasibleError as error:
        refusal = TrialResult("infeasible", str(error), log_path=log_path)
    except Exception as error:
        traceback.print_exc()
        refusal = TrialResult("failed", f"engine start: {type(error).__name__}: {error}", log_path=log_path)
    trials: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 1)
        trials = {pid for pid in trials if not os.waitpid(pid, os.WNOHANG)[0]}
        if not message:
            for pid in trials:
                os.waitpid(pid, 0)
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            if warm is None:
                assert refusal is not None
                send_result(connection, refusal)
            elif trial := _fork_trial(module, warm, TrialRequest.from_line(message), connection):
                trials.add(trial)


def redirect_output(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _fork_trial(
    module: EngineModule, warm: WarmEngine, request: TrialRequest, connection: socket.socket
) -> int | None:
    """Run a trial in a child; returns its process ID, None if these limits are refused without one."""
    # Measuring memory for new limits forks, too: the answer must stay with this process.
    try:
        module.before_fork(warm, request.spec)
    except InfeasibleError as error:
        send_result(connection, TrialResult("infeasible", str(error), log_path=request.out_dir / "trial.log"))
        return None
    if pid := os.fork():
        return pid
    die_with_parent()
    log_path = request.out_dir / "trial.log"
    redirect_output(log_path)
    try:
        result = _run(module, warm, request)
    except InfeasibleError as error:
        result = TrialResult("infeasible", str(error), log_path=log_path)
    except BaseException as error:
        traceback.print_exc()
        result = TrialResult("failed", f"{type(error).__name__}: {error}", log_path=log_path)
    send_result(connection, result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no clean-up of the parent's threads and libraries


def _run(module: EngineModule, warm: WarmEngine, request: TrialRequest) -> TrialResult:
    begin = time.perf_counter()
    module.prepare(warm, request.spec)
    workload = Workload.from_trace(request.workload_path)
    requests = make_requests(workload, request.spec.model.vocab_size, request.spec.seed)
    warm.core.begin_measurement()
    warm.core.show_virtual_time(True)
    warm.meter.records.clear()
    start_ns = warm.core.now_ns()
    deployment = InProcessDeployment(warm.replica, warm.core, warm.meter.costs)
    records = deployment.serve(requests, workload)
    warm.core.show_virtual_time(False)
    requests_path = request.out_dir / "requests.parquet"
    pq.write_table(requests_table(records, workload), requests_path)
    pq.write_table(_phases_table(warm.meter.records, start_ns), request.out_dir / "phases.parquet")
    usage = warm.pricing.usage()
    pq.write_table(usage.table(), request.out_dir / "kernels.parquet")
    if refusal := too_weak(request.spec.timing_require, usage.shares()):
        return TrialResult("infeasible", refusal, log_path=request.out_dir / "trial.log")
    return TrialResult(
        status="ok",
        kv_cache_blocks=warm.replica.kv_cache_blocks,
        provenance=usage.columns(),
        wall_s=time.perf_counter() - begin,
        requests_path=requests_path,
        log_path=request.out_dir / "trial.log",
    )


def _phases_table(records: list[PhaseRecord], start_ns: int) -> pa.Table:
    """The engine's timeline: one row a phase on a virtual core, µs of virtual time from the run's start."""
    return pa.table(
        {
            "core": [record.core for record in records],
            "phase": [record.phase for record in records],
            "begin_us": np.array([record.begin_ns - start_ns for record in records]) / 1e3,
            "end_us": np.array([record.end_ns - start_ns for record in records]) / 1e3,
            "kind": [record.step.kind for record in records],
            "requests": [record.step.num_reqs for record in records],
            "prompt_tokens": [record.step.num_tokens for record in records],
            "prefills": [record.step.num_prefills for record in records],
            "frame_chunks": [record.step.frame_chunks for record in records],
        }
    )
