"""Timing sources: which one answers for a GPU, and aiconfigurator's tables as a database."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revati.interception.gpu import known_gpus, load_gpu
from revati.timing import RankShape, aiconfigurator, db, kernel_db, source

LLAMA8B = RankShape(4096, 14336, 32, 8, 128, 128256, 32)


# A source for one GPU that nobody else has; a module serves as well as an object.
PLUGIN = """
def gpus(): return ["b9000"]
def missing(gpu): return "has b9000"
def prepare(gpu): ...
def open(gpu, shape): return gpu, shape
"""


def test_our_own_measurements_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source.known_sources()[:2] == ["kernel_db", "aiconfigurator"]
    assert source.choose(None, "h200") == "kernel_db"
    assert source.choose("kernel_db", "h200") == "kernel_db"
    assert source.source("kernel_db") is kernel_db


def test_a_gpu_without_timings_is_an_error_that_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiconfigurator, "version", lambda: None)
    with pytest.raises(source.UnknownSourceError) as error:
        source.choose(None, "l40s")
    text = str(error.value)
    assert "gpu=l40s" in text
    assert "kernel_db: has h100, h200; on a machine with the GPU, `python -m revati.profile gpu=l40s`" in text
    assert "aiconfigurator: not installed; pip install 'revati[aiconfigurator]'" in text
    with pytest.raises(source.UnknownSourceError, match="kernel_db: has h100, h200"):
        source.choose("kernel_db", "l40s")
    with pytest.raises(source.UnknownSourceError, match="'magic' is unknown; known: kernel_db, aiconf"):
        source.choose("magic", "h200")


def test_a_plugin_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{source.GROUP}]\ntheirs = their_timings\n")
    (tmp_path / "their_timings.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    assert source.known_sources() == ["kernel_db", "aiconfigurator", "theirs"]
    assert source.choose(None, "b9000") == "theirs"
    assert source.source("theirs").open("b9000", LLAMA8B) == ("b9000", LLAMA8B)


@pytest.mark.parametrize("name", known_gpus())
def test_every_described_gpu_is_complete(name: str) -> None:
    gpu = load_gpu(name)
    environment = dict(part.split("=", 1) for part in gpu.to_environment(2).split(";"))
    assert environment["count"] == "2"
    major, minor = gpu.compute_capability.split(".")
    assert (environment["attr.75"], environment["attr.76"]) == (major, minor)
    assert int(environment["attr.16"]) == gpu.sm_count
    assert int(environment["attr.38"]) >= 40 << 20  # L2
    assert gpu.memory_bytes < gpu.nvml_memory_bytes
    assert gpu.fp8_tflops is None or gpu.fp8_tflops > gpu.bf16_tflops
    # 2 transfers per clock and memory pin; GDDR6 and HBM3e clocks are reported so that this holds.
    pins_gb_s = int(environment["attr.36"]) * 2 * int(environment["attr.37"]) / 8 / 1e6
    assert gpu.memory_bandwidth_gb_s == pytest.approx(pins_gb_s, rel=0.07)
    assert name in {*kernel_db.gpus(), *aiconfigurator.SYSTEMS}


def test_an_unknown_compute_capability_names_the_known_ones() -> None:
    from revati.interception import capability

    with pytest.raises(ValueError, match=r"'7.0': known are 8.0, 8.9, 9.0, 10.0"):
        capability.attributes("7.0")


def gemm_ms(m: int, n: int, k: int) -> float:
    return (3.0 + n * k * 2 / 3e6 + 2.0 * m * n * k / 7e8) / 1e3


def decode_ms(requests: int, context: int) -> float:
    return (8.0 + requests * context * 4096 / 2.5e6) / 1e3


def prefill_ms(requests: int, tokens: int) -> float:
    return (10.0 + requests * tokens * tokens * 2.0 * 4096 / 4e8) / 1e3


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package laid out like aiconfigurator-core, with tables for one GPU."""
    root = tmp_path / "site"
    data = root / "aiconfigurator_core" / "systems" / "data" / "a100_sxm"
    common = {"framework": "VLLM", "version": "0.24.0", "device": "x"}
    gemms = [
        {"gemm_dtype": dtype, "kernel_source": "linear", "m": m, "n": n, "k": k, "latency": gemm_ms(m, n, k)}
        for dtype in ("bfloat16", "fp8")
        for m in (1, 8, 64, 512, 1024, 4096, 8192, 32768)
        for n in (4096, 8192, 16384, 32768)
        for k in (4096, 8192, 16384)
    ]
    write(data / "gemm/vllm/0.24.0/gemm_perf.parquet", [common | row for row in gemms])
    heads = {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "window_size": 0, "beam_width": 1}
    kinds = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "kernel_source": "fa3"}
    decodes = [
        {"batch_size": b, "isl": 1, "step": c - 1, "latency": decode_ms(b, c)}
        for b in (1, 4, 16, 64, 256)
        for c in (128, 512, 1024, 2048, 4096)
    ]
    prefills = [
        {"batch_size": b, "isl": q, "step": 0, "latency": prefill_ms(b, q)}
        for b in (1, 2, 4, 8)
        for q in (64, 256, 512, 1024, 2048)
    ]
    other = [{**decodes[0], "latency": 99.0, **heads, **kinds, "window_size": 128}]  # not what vLLM launches
    write(
        data / "attention/vllm/0.24.0/generation_attention_perf.parquet",
        [heads | kinds | row for row in decodes] + other,
    )
    write(
        data / "attention/vllm/0.24.0/context_attention_perf.parquet",
        [heads | kinds | row for row in prefills],
    )
    # An older version, which must not be taken: 0.9 < 0.24.
    write(data / "gemm/vllm/0.9.0/gemm_perf.parquet", [common | {**gemms[0], "latency": 99.0}])
    reduces = [
        {"num_gpus": 2, "message_size": size, "latency": 0.006, "backend": backend}
        for size in (1024, 65536)
        for backend in ("vllm_graph", "vllm_eager")
    ]
    write(data / "comm/vllm/0.24.0/custom_allreduce_perf.parquet", reduces)
    nccl = [
        {"op_name": op, "nccl_dtype": "half", "num_gpus": 2, "message_size": 4096, "latency": 0.01}
        for op in ("all_reduce", "all_gather", "alltoall")
    ]
    write(data / "comm/nccl/2.29.2/nccl_perf.parquet", nccl)
    (root / "aiconfigurator_core" / "__init__.py").write_text("raise ImportError('nobody imports it')\n")
    info = root / "aiconfigurator_core-7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aiconfigurator-core\nVersion: 7\n")
    monkeypatch.syspath_prepend(root)
    monkeypatch.delitem(sys.modules, "aiconfigurator_core", raising=False)
    monkeypatch.setenv("REVATI_CACHE", str(tmp_path / "cache"))
    return data


def test_an_unprepared_database_names_the_command(package: Path) -> None:
    assert aiconfigurator.gpus() == ["a100"]
    assert source.choose(None, "a100") == "aiconfigurator"
    with pytest.raises(FileNotFoundError, match=r"revati.profile.aiconfigurator gpu=a100"):
        aiconfigurator.open("a100", LLAMA8B)


@pytest.mark.slow
def test_tables_become_a_database_that_says_where_each_answer_is_from(package: Path) -> None:
    pytest.importorskip("sklearn")
    aiconfigurator.prepare("a100")
    timer = aiconfigurator.open("a100", LLAMA8B)

    gemm = timer.gemm(64, 8192, 4096, "bfloat16", "bfloat16")
    assert (gemm.provenance, gemm.duration_us) == ("measured", pytest.approx(gemm_ms(64, 8192, 4096) * 1e3))
    long = timer.gemm(8192, 4096, 4096, "bfloat16", "bfloat16")
    assert long.provenance == "measured"  # no power model, so no full clock to go on from
    between = timer.gemm(64, 28672, 4096, "bfloat16", "bfloat16")
    assert between.provenance == "interpolated"
    assert between.duration_us == pytest.approx(gemm_ms(64, 28672, 4096) * 1e3, rel=0.05)
    assert timer.gemm(64, 128256, 4096, "bfloat16", "bfloat16").provenance == "extrapolated"

    ones = np.ones(16, dtype=np.int64)
    main, combine = timer.attention(ones, ones * 1024)
    assert (main.provenance, main.duration_us) == ("measured", pytest.approx(decode_ms(16, 1024) * 1e3))
    assert combine.duration_us == 0.0  # its time is in the main kernel's
    ragged, _ = timer.attention(ones, np.linspace(512, 1536, 16).astype(np.int64))
    assert ragged.provenance == "interpolated"
    assert ragged.rel_std >= 0.1
    mixed, _ = timer.attention(np.array([1, 1, 512]), np.array([1000, 1000, 512]))
    assert mixed.provenance == "extrapolated"
    alone, _ = timer.attention(np.array([512]), np.array([512]))
    assert mixed.duration_us > alone.duration_us

    assert timer.collective("all_reduce", 2048, 2, "custom_1stage").duration_us == pytest.approx(6.0)
    assert timer.collective("all_reduce", 8192, 2, "nccl").provenance == "measured"
    assert timer.collective("all_gather", 4096, 2, "nccl").provenance == "measured"

    norm = timer.kernel("triton_red_fused_fused_add_rms_norm_2", (64, 1, 1), (512, 1, 1), 0, 64, 64)
    assert norm.provenance == "extrapolated"
    assert timer.copy("h2d", 1024).provenance == "extrapolated"
    ours = kernel_db.open("h200", LLAMA8B)
    large = ("reshape_and_cache_flash_kernel", (8192, 1, 1), (512, 1, 1), 0, 0, 0)
    slower = timer.kernel(*large).duration_us / ours.kernel(*large).duration_us
    assert 1.0 < slower < 4800 / 2039 * 1.01

    rows = db.read(aiconfigurator.database(), "a100").select(["kind", "method"]).to_pylist()
    scaled = {row["kind"] for row in rows if row["method"] == "scaled"}
    assert {"norm", "sampling", "copy", "gap"} <= scaled
    assert not scaled & {"gemm", "attention", "collective"}


@pytest.mark.slow
def test_heads_that_only_prompts_were_measured_for_are_extrapolated_in_decode(package: Path) -> None:
    """aiconfigurator has no decode rows of many KV heads; calling them measured would mislead."""
    pytest.importorskip("sklearn")
    path = package / "attention/vllm/0.24.0/context_attention_perf.parquet"
    rows = pq.read_table(path, partitioning=None).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows + [{**row, "num_key_value_heads": 32} for row in rows]), path)
    aiconfigurator.prepare("a100")
    timer = aiconfigurator.open("a100", RankShape(4096, 11008, 32, 32, 128, 32000, 32))
    ones = np.ones(16, dtype=np.int64)
    assert timer.attention(ones, ones * 1024)[0].provenance == "extrapolated"
    assert timer.attention(ones[:1] * 1024, ones[:1] * 1024)[0].provenance == "extrapolated"


def test_a_missing_table_is_named(package: Path) -> None:
    (package / "comm/nccl/2.29.2/nccl_perf.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="no nccl_perf"):
        aiconfigurator.prepare("a100")
    assert not (aiconfigurator.database() / "gpu=a100").exists()
