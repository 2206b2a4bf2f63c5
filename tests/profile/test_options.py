"""What of the profiler needs no GPU: its command line, its plan, and how recordings are taken apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from revati.profile.options import FAMILIES, HostOptions, Options, UsageError, parse
from revati.profile.shapes import GEMM_TOKENS, layer_gemms, rank_shape


def test_defaults_and_values() -> None:
    options = parse(["gpu=h200", "families=gemm,copy", "tensor_parallel=1,8", "out=/x", "budget_minutes=2.5"])
    assert options == Options(
        "h200", Path("/x"), families=("gemm", "copy"), tensor_parallel=(1, 8), budget_minutes=2.5
    )
    default = parse(["gpu=h200"])
    assert isinstance(default, Options)
    assert "collective" not in default.families
    assert (default.check, default.again, default.plan) == ("after", False, False)
    assert default.precisions == ("bf16",)
    both = parse(["gpu=h200", "precisions=bf16,fp8"])
    assert isinstance(both, Options)
    assert both.precisions == ("bf16", "fp8")


def test_a_host_has_options_of_its_own() -> None:
    assert parse(["host=mine"]) == HostOptions("mine")
    assert parse(["host=mine", "engines=a,b", "logs=/l"]) == HostOptions("mine", ("a", "b"), Path("/l"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "gpu=NAME is required"),
        (["gpu=h200", "fast"], "unknown argument 'fast'"),
        (["gpu=h200", "speed=9"], "accepted: gpu=…"),
        (["gpu=h200", "families=gemm,magic"], f"'magic'; accepted: {', '.join(FAMILIES)}"),
        (["gpu=h200", "budget_minutes=soon"], "budget_minutes must be a number above 0"),
        (["gpu=../h200"], "letters, digits and underscores"),
        (["gpu=h200", "precisions=fp4"], "'fp4'; accepted: bf16, fp8"),
        (["gpu=h200", "check=maybe"], "'maybe'; accepted: after, only, no"),
        (["gpu=h200", "plan=perhaps"], "accepted: yes, no"),
        (["host=h200", "gpu=h200"], "accepted: host=…, engines=…, logs=…"),
        (["host=../x"], "letters, digits and underscores"),
    ],
)
def test_bad_arguments_name_what_is_accepted(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(arguments)
    assert message in str(error.value)


def test_rank_shapes_divide_heads_and_keep_one_kv_head() -> None:
    whole, rank = rank_shape("llama31_70b", 1), rank_shape("llama31_70b", 8)
    assert (whole.num_q_heads, whole.num_kv_heads) == (64, 8)
    assert (rank.num_q_heads, rank.num_kv_heads) == (8, 1)
    assert layer_gemms(rank) == [(1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584)]


def test_all_captured_sizes_are_planned() -> None:
    assert {1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)} <= set(GEMM_TOKENS)


class TestRecorder:
    @pytest.fixture(autouse=True)
    def _needs_torch(self) -> None:
        pytest.importorskip("torch")

    def test_groups_stand_between_two_marks(self) -> None:
        from revati.profile.recorder import GpuEvent, RecordingError, span_us, split_at_marks

        def event(name: str, start_us: float) -> GpuEvent:
            return GpuEvent("kernel", name, start_us, 2.0, (1, 1, 1), (1, 1, 1), 0, 0, 7, 0)

        mark = "Memcpy DtoD (Device -> Device)"
        names = ["noise", mark, "gemm", "splitK", mark, "flush", mark, "gemm", mark, "flush"]
        events = [event(name, 10.0 * i) for i, name in enumerate(names)]
        groups = split_at_marks(events, 2)
        assert [[e.name for e in g] for g in groups] == [["gemm", "splitK"], ["gemm"]]
        assert span_us(groups[0]) == 12.0
        with pytest.raises(RecordingError, match="expected 6 marks"):
            split_at_marks(events, 3)

    def test_in_a_graph_a_call_ends_at_the_next_ones_mark(self) -> None:
        from revati.profile.recorder import GpuEvent, after_marks

        names = ["memcpy32_post", "gemm", "splitK", "Memcpy DtoD (Device -> Device)", "gemm"]
        events = [
            GpuEvent("kernel", name, i, 0.5, (1, 1, 1), (1, 1, 1), 0, 0, 7, 0) for i, name in enumerate(names)
        ]
        assert [[e.name for e in g] for g in after_marks(events, 2)] == [["gemm", "splitK"], ["gemm"]]
