"""The roofline baseline's scheduling and step times."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from revati.paths import conf_dir
from revati.timing.estimate import RankShape
from revati.timing.gpu import load_limits
from revati.validate.runs import model_shape, read_cases
from revati.workload import Workload

from .conftest import AddRun


@pytest.fixture(scope="module")
def roofline() -> ModuleType:
    path = Path(__file__).parents[2] / "validation" / "baselines" / "roofline.py"
    spec = importlib.util.spec_from_file_location("roofline", path)
    assert spec
    assert spec.loader
    module = sys.modules["roofline"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def machine(  # type: ignore[no-untyped-def]
    roofline: ModuleType, tp: int = 1, stages: int = 1, linear_dtype: str = "bfloat16"
):
    shape = RankShape.of(model_shape("llama7b"), tp)
    return roofline.Machine(shape, load_limits(conf_dir() / "gpu", "h200"), stages, linear_dtype)


def workload(arrival_s: list[float], prompt: int, output: int) -> Workload:
    count = len(arrival_s)
    return Workload("w", np.array(arrival_s), np.full(count, prompt), np.full(count, output))


LIMITS = {"kv_tokens": 1e6, "max_num_seqs": 256, "max_num_batched_tokens": 8192}


def test_decode_is_bound_by_weights_and_prefill_by_flops(roofline: ModuleType) -> None:
    one = machine(roofline)
    assert one.weight_bytes == pytest.approx(2 * 6.74e9, rel=0.01), "Llama 2 7B in bf16"
    assert one.stage_s([1], [1]) == pytest.approx(one.weight_bytes / 4.8e12, rel=0.01)
    prefill = one.stage_s([8192], [8192])
    assert prefill > 2 * 8192 * 6.4e9 / 989e12
    assert machine(roofline, tp=2).stage_s([1], [1]) == pytest.approx(one.stage_s([1], [1]) / 2, rel=0.01)


def test_fp8_halves_the_layers_products_only(roofline: ModuleType) -> None:
    one, fp8 = machine(roofline), machine(roofline, linear_dtype="float8_e4m3")
    shared = 2 * 2 * 32000 * 4096  # bytes of embedding and output matrix
    assert fp8.weight_bytes - shared == pytest.approx((one.weight_bytes - shared) / 2)
    prefill, of_fp8 = one.stage_s([512], [512]), fp8.stage_s([512], [512])
    assert prefill / 2 < of_fp8 < 0.55 * prefill


def test_tokens_come_step_by_step(roofline: ModuleType) -> None:
    one = machine(roofline)
    (request,) = roofline.serve(one, workload([1.0], 100, 3), **LIMITS)
    prefill, decode = one.stage_s([100], [100]), one.stage_s([1], [101])
    assert request.token_times_s[:2] == pytest.approx([1.0 + prefill, 1.0 + prefill + decode])
    assert len(request.token_times_s) == 3


def test_prompts_are_chunked_by_the_budget(roofline: ModuleType) -> None:
    one = machine(roofline)
    limits = LIMITS | {"max_num_batched_tokens": 60}
    (request,) = roofline.serve(one, workload([0.0], 100, 1), **limits)
    assert request.token_times_s == pytest.approx([one.stage_s([60], [60]) + one.stage_s([40], [100])])


@pytest.mark.parametrize("limit", [{"max_num_seqs": 1}, {"kv_tokens": 150}])
def test_requests_wait_for_a_place(roofline: ModuleType, limit: dict[str, float]) -> None:
    first, second = roofline.serve(machine(roofline), workload([0.0, 0.0], 100, 5), **(LIMITS | limit))
    assert second.token_times_s[0] > first.token_times_s[-1]


def test_pipeline_stages_work_on_different_batches(roofline: ModuleType) -> None:
    two = machine(roofline, stages=2)
    first, second = roofline.serve(two, workload([0.0, 1e-6], 100, 200), **LIMITS)
    alone = roofline.serve(two, workload([0.0], 100, 200), **LIMITS)[0]
    assert first.token_times_s[-1] == pytest.approx(alone.token_times_s[-1], rel=0.02)
    assert second.token_times_s[-1] == pytest.approx(first.token_times_s[-1], rel=0.05)


def test_a_measured_case_is_predicted_whole(roofline: ModuleType, measured: Path, add_run: AddRun) -> None:
    limits = {"max_num_seqs": 1024, "max_num_batched_tokens": 8192}
    memory = {"gpu_memory_utilization": 0.92, "block_size": 16, "num_gpu_blocks": 14727}
    add_run("a", resolved=limits | memory)
    prediction = roofline.predict(read_cases([measured])[0])
    assert prediction.metrics["output_throughput_tok_per_s"] > 0
    assert prediction.metrics["kv_cache_blocks"] == pytest.approx(14727, rel=0.02)
