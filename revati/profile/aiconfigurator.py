"""Turn aiconfigurator's measurements of a GPU into a kernel database that Revati reads.

    python -m revati.profile.aiconfigurator gpu=h100

aiconfigurator (Apache-2.0, NVIDIA) ships what kernels of vLLM took on a number of GPUs. Its tables hold
products, attention and collectives; the small kernels in between (norms, rope, sampling, copies, …) are
scaled here from those that Revati measured on an H200, and marked so. The result lies in the user's cache
folder, so that what runs in an engine needs neither aiconfigurator nor scikit-learn.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from revati import paths
from revati.interception.gpu import GpuDescription, load_gpu
from revati.profile.fit import fit
from revati.timing import aiconfigurator, db
from revati.timing.schema import SCALED, rows_to_table
from revati.timing.timer import LAUNCH_KINDS

FRAMEWORK = "vllm"
MEASURED_ON = "h200"  # the GPU whose small kernels are scaled
HEAD_DIM = 128
ELEMENT_BYTES = 2  # its collectives' sizes are numbers of 16-bit elements
MOST_REQUESTS, MOST_CONTEXT, MOST_TOKENS = 1024, 32768, 16384
FLOOR_SHARE = 0.9  # of a small kernel's shortest time that is start-up and not bandwidth

Row = dict[str, Any]


def newest(folder: Path, table: str) -> Path | None:
    """A table's newest version below ``folder`` (``<version>/<table>.parquet``)."""
    found = [path for path in folder.glob(f"*/{table}.parquet") if path.is_file()]
    return max(found, key=lambda path: _version(path.parent.name), default=None)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.split("."))


def gemms(path: Path) -> Iterator[Row]:
    for row in pq.read_table(path, partitioning=None).to_pylist():
        if row["gemm_dtype"] == "bfloat16" and row["m"] <= MOST_TOKENS:
            yield {
                "kind": "gemm",
                "kernel": row["kernel_source"],
                "dtype": "bfloat16",
                "m": row["m"],
                "n": row["n"],
                "k": row["k"],
                "median_us": row["latency"] * 1e3,
            }


def attentions(path: Path) -> Iterator[Row]:
    """Batches of equal requests; a row's time includes the reduction over splits."""
    for row in pq.read_table(path, partitioning=None).to_pylist():
        requests, query, before = row["batch_size"], row["isl"], row["step"]
        context, tokens = query + before, requests * query
        wanted = (
            row["head_dim"] == HEAD_DIM
            and not row.get("window_size")
            and (row["attn_dtype"], row["kv_cache_dtype"]) == ("bfloat16", "bfloat16")
            and requests <= MOST_REQUESTS
            and context <= MOST_CONTEXT
            and tokens <= MOST_TOKENS
        )
        if wanted:
            yield {
                "kind": "attention",
                "kernel": row["kernel_source"],
                "variant": "graph" if tokens <= 512 else "eager",
                "dtype": "bfloat16",
                "num_tokens": tokens,
                "num_reqs": requests,
                "num_q_heads": row["num_heads"],
                "num_kv_heads": row["num_key_value_heads"],
                "head_dim": HEAD_DIM,
                "query_lens": [query] * requests,
                "context_lens": [context] * requests,
                "median_us": row["latency"] * 1e3,
            }


def custom_all_reduces(path: Path) -> Iterator[Row]:
    """vLLM's own all-reduce inside CUDA graphs; the table doesn't tell its two algorithms apart."""
    for row in pq.read_table(path, partitioning=None).to_pylist():
        if row.get("backend", "vllm_graph").endswith("graph"):
            for stage in ("custom_1stage", "custom_2stage"):
                yield _collective("all_reduce", stage, row, row["message_size"] * ELEMENT_BYTES)


def nccl(path: Path) -> Iterator[Row]:
    for row in pq.read_table(path, partitioning=None).to_pylist():
        op, nbytes = row["op_name"], row["message_size"] * ELEMENT_BYTES
        if row["nccl_dtype"] != "half" or op not in ("all_reduce", "all_gather", "reduce_scatter"):
            continue
        # The size is of the larger buffer, `nbytes` of a rank's smaller one.
        yield _collective(op, "nccl", row, nbytes if op == "all_reduce" else nbytes // row["num_gpus"])


def _collective(op: str, variant: str, row: Row, nbytes: int) -> Row:
    return {
        "kind": "collective",
        "kernel": op,
        "variant": variant,
        "dtype": "bfloat16",
        "nbytes": nbytes,
        "ranks": row["num_gpus"],
        "median_us": row["latency"] * 1e3,
    }


def scaled(target: GpuDescription) -> Iterator[Row]:
    """Small kernels of the H200: start-up by the ratio of clocks, the rest by the ratio of bandwidths."""
    base = load_gpu(MEASURED_ON)
    measured = db.read(paths.kernel_db_dir(), MEASURED_ON).to_pylist()
    clock = base.sm_clock_mhz / target.sm_clock_mhz
    memory = base.memory_bandwidth_gb_s / target.memory_bandwidth_gb_s
    link = base.pcie_bandwidth_gb_s / target.pcie_bandwidth_gb_s
    kinds = {*LAUNCH_KINDS, "copy", "memset", "gap"}
    shortest: dict[str, float] = {}
    for row in measured:
        if row["kind"] in kinds:
            shortest[row["kind"]] = min(row["median_us"], shortest.get(row["kind"], row["median_us"]))
    for row in measured:
        if row["kind"] not in kinds:
            continue
        floor_us = FLOOR_SHARE * shortest[row["kind"]]
        ratio = link if row["variant"] in ("h2d", "d2h") else memory
        scaled_us = floor_us * clock + (row["median_us"] - floor_us) * ratio
        own = {name: value for name, value in row.items() if name not in ("p10_us", "p90_us")}
        yield own | {"median_us": scaled_us, "method": SCALED, "libraries": f"scaled from {MEASURED_ON}"}


def convert(gpu: str) -> Path:
    """Write the database of one GPU; returns its folder.

    Raises:
        FileNotFoundError: aiconfigurator lacks a table that is needed; says which.
    """
    data, target, release = aiconfigurator.data_dir(gpu), load_gpu(gpu), aiconfigurator.version()
    tables = {
        "gemm": [(gemms, data / "gemm" / FRAMEWORK, "gemm_perf")],
        "attention": [
            (attentions, data / "attention" / FRAMEWORK, "generation_attention_perf"),
            (attentions, data / "attention" / FRAMEWORK, "context_attention_perf"),
        ],
        "collective": [
            (custom_all_reduces, data / "comm" / FRAMEWORK, "custom_allreduce_perf"),
            (nccl, data / "comm" / "nccl", "nccl_perf"),
        ],
    }
    final = aiconfigurator.database()
    partial = final.with_name(f"{final.name}.partial-{gpu}")
    shutil.rmtree(partial, ignore_errors=True)
    for family, readers in tables.items():
        rows: list[Row] = []
        for read, folder, table in readers:
            path = newest(folder, table)
            if path is None:
                raise FileNotFoundError(f"aiconfigurator has no {table} below {folder}")
            origin = {
                "count": 1,
                "method": "aiconfigurator",
                "measured_at": "unknown",
                "driver": "unknown",
                "libraries": f"{aiconfigurator.PACKAGE}={release} {path.parts[-3]}={path.parts[-2]}",
            }
            rows += [origin | row for row in read(path)]
        db.write(rows_to_table(rows), partial / f"gpu={gpu}" / f"{family}.parquet")
    db.write(rows_to_table(list(scaled(target))), partial / f"gpu={gpu}" / "scaled.parquet")
    fit(partial, gpu, kinds=("attention",), equal_requests=True)
    folder = final / f"gpu={gpu}"
    shutil.rmtree(folder, ignore_errors=True)
    final.mkdir(parents=True, exist_ok=True)
    (partial / f"gpu={gpu}").replace(folder)
    shutil.rmtree(partial)
    return folder


def main(arguments: list[str]) -> int:
    gpu = next((a.removeprefix("gpu=") for a in arguments if a.startswith("gpu=")), "")
    if gpu not in aiconfigurator.gpus():
        known = ", ".join(aiconfigurator.gpus()) or f"none ({aiconfigurator.missing(gpu)})"
        print(f"{__doc__}\naccepted: gpu= of {known}", file=sys.stderr)
        return 2
    print(f"wrote {convert(gpu)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
