"""Measured runs: repeats, what is replayed of them, what cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from revati.spec import HostSpec
from revati.validate.runs import Unsupported, ValidationError, read_cases

from .conftest import AddRun

HOST = HostSpec("h200_xeon")


def test_repeats_are_one_case_measured_by_their_median(measured: Path, add_run: AddRun) -> None:
    for name, factor in (("a", 1.0), ("a_rep2", 2.0), ("a_rep3", 1.2), ("b", 1.0)):
        add_run(name, factor)
    a, b = read_cases([measured])
    assert (a.name, len(a.runs), b.name, len(b.runs)) == ("a", 3, "b", 1)
    assert a.measured("ttft_ms_p50") == pytest.approx(1.2 * b.measured("ttft_ms_p50"))


def test_noise_is_the_error_of_one_more_run(measured: Path, add_run: AddRun) -> None:
    for name, factor in (("a", 1.0), ("a_rep2", 2.0), ("b", 1.0)):
        add_run(name, factor)
    a, b = read_cases([measured])
    assert a.noise_pct("ttft_ms_p50") == pytest.approx((100 + 50) / 2), "2 against 1 and 1 against 2"
    assert a.noise_pct("kv_cache_blocks") == 0
    assert math.isnan(b.noise_pct("ttft_ms_p50")), "one run has no noise"


def test_the_tails_of_a_paused_client_do_not_count(measured: Path, add_run: AddRun) -> None:
    add_run("a", 1.0)
    add_run("a_rep2", 3.0, frontend_stall=True)
    a = read_cases([measured])[0]
    assert len(a.values("ttft_ms_p99")) == 1
    assert len(a.values("ttft_ms_p50")) == 2


def test_the_recorded_settings_are_replayed(measured: Path, add_run: AddRun) -> None:
    add_run("tp2", tensor_parallel_size=2, engine_args={"tensor_parallel_size": 2, "block_size": 32})
    spec = read_cases([measured])[0].spec(HOST)
    assert spec.tensor_parallel_size == 2
    assert spec.engine_args == {"block_size": 32, "max_num_seqs": 1024, "max_num_batched_tokens": 8192}
    assert spec.model.hidden_size == 4096
    assert spec.host == HOST


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"engine": "tgi"}, "engine tgi: only vllm, sglang"),
        ({"model": "gpt-5"}, "no such shape in conf/model; known: .*llama13b"),
    ],
)
def test_what_cannot_be_emulated_says_why(
    measured: Path, add_run: AddRun, changes: dict[str, Any], reason: str
) -> None:
    add_run("odd", **changes)
    with pytest.raises(Unsupported, match=reason):
        read_cases([measured])[0].spec(HOST)


def test_a_manifest_marks_runs_and_names_their_hosts(measured: Path, add_run: AddRun) -> None:
    for name in ("a_r1", "a_r1_rep2", "b_r1"):
        add_run(name)
    (measured / "manifest.yaml").write_text("dev: ['a_*']\nhost: {'b_*': h200_xeon_contended}\n")
    a, b = read_cases([measured])
    assert (a.dev, b.dev) == (True, False)
    assert a.spec(HOST).host.name == "h200_xeon"
    assert b.spec(HOST).host.name == "h200_xeon_contended"
    (measured / "manifest.yaml").write_text("looked_at: []\n")
    with pytest.raises(ValidationError, match="unknown looked_at; accepted: dev, host"):
        read_cases([measured])


def test_repeats_must_serve_the_same_requests(measured: Path, add_run: AddRun) -> None:
    add_run("a")
    folder = add_run("a_rep2")
    table = pq.read_table(folder / "requests.parquet")
    pq.write_table(table.slice(1), folder / "requests.parquet")
    with pytest.raises(ValidationError, match="a: its repeats serve different requests"):
        read_cases([measured])


def test_a_folder_without_runs_is_an_error(measured: Path, tmp_path: Path, add_run: AddRun) -> None:
    with pytest.raises(ValidationError, match="is no folder"):
        read_cases([tmp_path / "absent"])
    add_run("a")
    with pytest.raises(ValidationError, match=r"runs=c\* matches none of .*: a"):
        read_cases([measured], "c*")
