"""All-reduce and all-gather over the GPUs of one host: vLLM's custom kernels and NCCL, in CUDA graphs.

One process per rank. A graph holds a row of equal collectives, so that the ranks stay in step and a
kernel's duration is the collective's own, not a wait for a rank that launched late.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revati.profile.parts import Row

RANKS = (2, 4, 8)
CUSTOM_MAX_BYTES = 8 * 2**20  # vLLM's buffer; larger messages go to NCCL
SIZES = tuple(2**e * f // 4 for e in range(10, 27) for f in (4, 5, 6, 7) if 2**e * f // 4 <= 64 * 2**20)
GATHER_SIZES = tuple(2**e for e in range(10, 26))
PER_GRAPH = 8
REPLAYS = 6
TIMEOUT_S = 150.0


def rank_counts() -> list[int]:
    import torch

    return [r for r in RANKS if r <= torch.cuda.device_count()]


def measure(ranks: int) -> list[Row]:
    """Rows of kind collective; ``nbytes`` is what one rank puts in."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rows.json"
        environment = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            "NCCL_NVLS_ENABLE": "0",
            "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
            "VLLM_SKIP_P2P_CHECK": "1",
        }
        command = [sys.executable, "-m", "revati.profile.collective", str(result)]
        workers = [
            subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(ranks)
        ]
        try:
            for worker in workers:
                worker.wait(TIMEOUT_S)
        finally:
            for worker in workers:
                worker.kill()
        if not result.exists():
            raise RuntimeError(f"no result from {ranks} ranks: exit codes {[w.returncode for w in workers]}")
        rows: list[Row] = json.loads(result.read_text())
        return rows


def _worker(result: Path) -> None:
    import torch
    import torch.distributed as dist
    from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    gloo = dist.new_group(backend="gloo")
    custom = CustomAllreduce(gloo, torch.device("cuda", rank))
    if custom.disabled:
        raise RuntimeError("vLLM's custom all-reduce is disabled on this machine")
    rows: list[dict[str, Any]] = []

    def keep(op: str, nbytes: int, call: Callable[[], object], capture: Any) -> None:
        events = _graph_events(call, capture)
        dist.barrier(group=gloo)
        rows.append(_row(op, nbytes, ranks, events))

    for nbytes in SIZES:
        x = torch.randn(nbytes // 2, dtype=torch.bfloat16, device="cuda")
        if custom.should_custom_ar(x):
            keep("all_reduce", nbytes, lambda x=x: custom.custom_all_reduce(x), custom.capture)  # type: ignore[misc]
    for nbytes in SIZES:
        x = torch.zeros(nbytes // 2, dtype=torch.bfloat16, device="cuda")
        keep("all_reduce", nbytes, lambda x=x: dist.all_reduce(x), nullcontext)  # type: ignore[misc]
    for nbytes in GATHER_SIZES:
        x = torch.randn(nbytes // 2, dtype=torch.bfloat16, device="cuda")
        out = torch.empty(ranks * nbytes // 2, dtype=torch.bfloat16, device="cuda")
        keep(
            "all_gather",
            nbytes,
            lambda x=x, out=out: dist.all_gather_into_tensor(out, x),  # type: ignore[misc]
            nullcontext,
        )
    if rank == 0:
        result.write_text(json.dumps(rows))
    dist.barrier(group=gloo)
    os._exit(0)  # communicators that captured graphs may hang in their destructors


def _graph_events(call: Callable[[], object], capture: Any) -> list[tuple[str, float]]:
    """(kernel, duration) of the collectives, without each replay's first one."""
    import torch

    from revati.profile.recorder import record

    if capture is nullcontext:
        call()  # NCCL connects its channels lazily
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with capture(), torch.cuda.graph(graph):
        for _ in range(PER_GRAPH):
            call()

    def work() -> None:
        for _ in range(REPLAYS):
            graph.replay()
            torch.cuda.synchronize()

    graph.replay()
    events = [e for e in record(work) if "cross_device_reduce" in e.name or "nccl" in e.name.lower()]
    return [(e.name, e.duration_us) for i, e in enumerate(events) if i % PER_GRAPH]


def _row(op: str, nbytes: int, ranks: int, events: list[tuple[str, float]]) -> dict[str, Any]:
    from revati.profile.parts import summary

    return {
        "kind": "collective",
        "kernel": op,
        "variant": _algorithm(events[0][0]),
        "dtype": "bfloat16",
        "nbytes": nbytes,
        "ranks": ranks,
        "method": "cupti",
        **summary([duration_us for _, duration_us in events]),
    }


def _algorithm(name: str) -> str:
    for stage in ("1stage", "2stage"):
        if f"cross_device_reduce_{stage}" in name:
            return f"custom_{stage}"
    return "nccl"


if __name__ == "__main__":
    _worker(Path(sys.argv[1]))
