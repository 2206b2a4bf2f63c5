"""A runner that answers from a formula, for tests of the search alone.

It speaks the interface of ``revati.deployment.runner``. Some settings misbehave on purpose, see `run`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revati.deployment.wire import TrialResult
from revati.spec import DeploymentSpec
from revati.workload import Workload

DIES, CRASHES, TOO_BIG, SLOW = 7001, 7002, 7003, 7004


class TemplateServer:
    def __init__(self, log_dir: Path, engines: Sequence[str], gpu: str) -> None:
        self.log_dir = log_dir
        self.socket_path = log_dir / "socket"

    def __enter__(self) -> TemplateServer:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.socket_path.touch()
        return self

    def __exit__(self, *error: object) -> None:
        self.socket_path.unlink()


class TemplateClient:
    def __init__(self, socket_path: Path) -> None:
        assert socket_path.exists(), "the server must be up"

    def run(self, spec: DeploymentSpec, workload: Workload, out_dir: Path) -> TrialResult:
        tokens = spec.engine_args.get("max_num_batched_tokens", 8192)
        if tokens == DIES:
            os._exit(9)
        if tokens == CRASHES:
            raise RuntimeError("engine core\nexploded")
        if tokens == TOO_BIG:
            return TrialResult("infeasible", "No available memory for the cache blocks.")
        if tokens == SLOW:
            time.sleep(60)
        path = out_dir / "requests.parquet"
        pq.write_table(requests(spec, workload), path)
        return TrialResult(
            "ok",
            kv_cache_blocks=8449,
            provenance={
                "gpu_time_share_measured": 0.75,
                "gpu_time_share_roofline": 0.25,
                "gpu_time_rel_std": 0.14,
                "unseen_kernels": 3,
            },
            wall_s=0.1,
            requests_path=path,
        )


def requests(spec: DeploymentSpec, workload: Workload) -> pa.Table:
    """Requests that get faster with more GPUs, and slower to start the fewer may run at once."""
    seqs = spec.engine_args.get("max_num_seqs", 1024)
    step_s = 0.02 / spec.tensor_parallel_size**0.7 * (1 + seqs / 512)
    ttft_s = 0.05 + 2.0 / seqs * np.arange(1, len(workload) + 1) / len(workload)
    e2e_s = ttft_s + step_s * (workload.output_tokens - 1)
    times_us = [
        ((ttft + step_s * np.arange(count)) * 1e6).astype(np.int64)
        for ttft, count in zip(ttft_s, workload.output_tokens, strict=True)
    ]
    return pa.table(
        {
            "arrival_s": workload.arrival_s,
            "prompt_tokens": workload.prompt_tokens,
            "output_tokens": workload.output_tokens,
            "ttft_s": ttft_s,
            "e2e_s": e2e_s,
            "tpot_s": np.full(len(workload), step_s),
            "token_times_us": pa.array(times_us, pa.list_(pa.int64())),
        }
    )
