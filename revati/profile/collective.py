"""Collectives over the GPUs of one host: vLLM's custom all-reduce and NCCL, in CUDA graphs.

One process per GPU. A graph holds a row of equal collectives, so that the ranks stay in step and a kernel's
duration is the collective's own, not a wait for a rank that launched late.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revati.profile import crowding, meetings

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from revati.profile.parts import Row

RANKS = (2, 4, 8)
SIZES = tuple(size for e in range(10, 27) for size in (2**e, 3 * 2 ** (e - 1)) if size <= 64 * 2**20)
PER_GRAPH = 8
REPLAYS = 5
TIMEOUT_S = 260.0


def gpu_count() -> int:
    import torch

    return int(torch.cuda.device_count())


def measure(gpus: int) -> list[Row]:
    """Rows of kind collective for 2, 4 and 8 ranks (``nbytes``: of one rank's input), and of kind crowded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rows.json"
        environment = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(gpus),
            "NCCL_NVLS_ENABLE": "0",
            "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
            "VLLM_SKIP_P2P_CHECK": "1",
        }
        command = [sys.executable, "-m", "revati.profile.collective", str(result)]
        workers = [
            subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(gpus)
        ]
        deadline_s = time.monotonic() + TIMEOUT_S
        while any(w.poll() is None for w in workers) and time.monotonic() < deadline_s:
            if any(w.poll() not in (None, 0) for w in workers):
                break  # the others wait for it for ever
            time.sleep(0.2)
        for worker in workers:
            worker.kill()
        if not result.exists():
            codes = [worker.wait() for worker in workers]
            raise RuntimeError(f"no result from {gpus} ranks: exit codes {codes}")
        rows: list[Row] = json.loads(result.read_text())
        return rows


def _worker(result: Path) -> None:
    import torch
    import torch.distributed as dist
    from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce

    rank, gpus = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl")
    everyone = dist.new_group(backend="gloo")
    rows: list[Row] = []
    for ranks in (r for r in RANKS if r <= gpus):
        members = list(range(ranks))
        gloo, nccl = dist.new_group(members, backend="gloo"), dist.new_group(members, backend="nccl")
        if rank < ranks:
            custom = CustomAllreduce(gloo, torch.device("cuda", rank))
            if custom.disabled:
                print(f"vLLM's custom all-reduce is disabled for {ranks} ranks on this machine", flush=True)
            else:
                reduce, capture = custom.custom_all_reduce, custom.capture
                rows += _all_reduces(ranks, reduce, custom.should_custom_ar, capture)
                rows += meetings.measure(reduce, capture, partial(_gather, gloo))
            rows += _nccl(ranks, nccl)
            if ranks == 2:
                rows += crowding.measure(rank, gloo, nccl)
        if rank == 0:
            _save(rows, result)
        dist.barrier(group=everyone)
    if rank < 2:
        rows += _sends(rank)
    if rank == 0:
        _save(rows, result)
    dist.barrier(group=everyone)
    os._exit(0)  # communicators that captured graphs may hang in their destructors


def _gather(group: ProcessGroup, value: list[meetings.Observed]) -> list[list[meetings.Observed]]:
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def _save(rows: list[Row], result: Path) -> None:
    unfinished = result.with_suffix(".tmp")
    unfinished.write_text(json.dumps(rows))
    unfinished.replace(result)


def _all_reduces(
    ranks: int,
    call: Callable[[torch.Tensor], object],
    accepts: Callable[[torch.Tensor], bool],
    capture: Callable[[], AbstractContextManager[None]],
) -> list[Row]:
    inputs = [tensor for tensor in map(_data, SIZES) if accepts(tensor)]
    calls = [(lambda tensor=tensor: call(tensor)) for tensor in inputs]
    return _rows("all_reduce", ranks, [t.nbytes for t in inputs], _record_graphs(calls, capture))


def _nccl(ranks: int, group: ProcessGroup) -> list[Row]:
    import torch
    import torch.distributed as dist

    inputs = [_data(size) for size in SIZES]
    sizes = [tensor.nbytes for tensor in inputs]
    outputs = [torch.empty(ranks * t.numel(), dtype=t.dtype, device="cuda") for t in inputs]
    reduces = [(lambda t=t: dist.all_reduce(t, group=group)) for t in inputs]
    gathers = [
        (lambda t=t, out=out: dist.all_gather_into_tensor(out, t, group=group))
        for t, out in zip(inputs, outputs, strict=True)
    ]
    reduces[0](), gathers[0]()  # NCCL connects its channels lazily
    return _rows("all_reduce", ranks, sizes, _record_graphs(reduces, nullcontext)) + _rows(
        "all_gather", ranks, sizes, _record_graphs(gathers, nullcontext)
    )


def _sends(rank: int) -> list[Row]:
    """Rank 0 sends to rank 1, as pipeline stages do; queued back to back, outside of graphs."""
    import torch
    import torch.distributed as dist

    from revati.profile.recorder import record

    tensors = [_data(size) for size in SIZES]

    def work() -> None:
        torch.cuda._sleep(20_000_000)
        for tensor in tensors:
            for _ in range(PER_GRAPH):
                dist.send(tensor, 1) if rank == 0 else dist.recv(tensor, 0)

    work()
    durations = [e.duration_us for e in record(work) if "nccl" in e.name.lower()]
    each = [durations[i * PER_GRAPH : (i + 1) * PER_GRAPH] for i in range(len(tensors))]
    return _rows("send_recv", 2, [t.nbytes for t in tensors], [[("nccl", us) for us in one] for one in each])


def _data(size: int) -> torch.Tensor:
    import torch

    return torch.zeros(size // 2, dtype=torch.bfloat16, device="cuda")


def _record_graphs(
    calls: Sequence[Callable[[], object]], capture: Callable[[], AbstractContextManager[None]]
) -> list[list[tuple[str, float]]]:
    """(kernel, duration) per call, without the first kernel of each replay."""
    import torch

    from revati.profile.recorder import RecordingError, record

    graphs = [torch.cuda.CUDAGraph() for _ in calls]
    with capture():
        for graph, call in zip(graphs, calls, strict=True):
            # NCCL's watchdog thread queries events meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for _ in range(PER_GRAPH):
                    call()

    def work() -> None:
        for graph in graphs:
            for _ in range(REPLAYS):
                graph.replay()
                torch.cuda.synchronize()

    work()
    events = [e for e in record(work) if meetings.ALL_REDUCE in e.name or "nccl" in e.name.lower()]
    per_call = PER_GRAPH * REPLAYS
    if len(events) != per_call * len(calls):
        raise RecordingError(f"expected {per_call * len(calls)} collectives, recorded {len(events)}")
    return [
        [(e.name, e.duration_us) for i, e in enumerate(events[at : at + per_call]) if i % PER_GRAPH]
        for at in range(0, len(events), per_call)
    ]


def _rows(op: str, ranks: int, sizes: list[int], found: list[list[tuple[str, float]]]) -> list[Row]:
    from revati.profile.parts import summary

    return [
        {
            "kind": "collective",
            "kernel": op,
            "variant": meetings.algorithm(events[0][0]),
            "dtype": "bfloat16",
            "nbytes": nbytes,
            "ranks": ranks,
            "method": "cupti",
            **summary([duration_us for _, duration_us in events]),
        }
        for nbytes, events in zip(sizes, found, strict=True)
    ]


if __name__ == "__main__":
    _worker(Path(sys.argv[1]))
