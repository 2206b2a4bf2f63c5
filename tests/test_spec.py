"""The deployment spec: JSON, checks, and which specs can share an engine."""

from dataclasses import replace
from typing import Any

import pytest

from revati.spec import DeploymentSpec, HostSpec, ModelShape

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}
SPEC = DeploymentSpec(
    "vllm",
    ModelShape("m", CONFIG),
    "h200",
    HostSpec("h"),
    engine_args={"max_num_seqs": 8, "enforce_eager": True},
)


def test_json_keeps_everything() -> None:
    spec = replace(SPEC, tensor_parallel_size=4, timing_require="measured", seed=7)
    assert DeploymentSpec.from_json(spec.to_json()) == spec


def test_derived_shapes() -> None:
    assert (SPEC.model.head_dim, SPEC.model.num_key_value_heads, SPEC.model.dtype) == (128, 32, "bfloat16")
    other = ModelShape("m", {**CONFIG, "num_key_value_heads": 8, "head_dim": 64, "torch_dtype": "float16"})
    assert (other.head_dim, other.num_key_value_heads, other.dtype) == (64, 8, "float16")


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "4096", True])
def test_model_fields_are_positive_integers(value: Any) -> None:
    with pytest.raises(ValueError, match="hidden_size"):
        ModelShape("m", {**CONFIG, "hidden_size": value})


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="architectures"):
        ModelShape("m", {**CONFIG, "architectures": []})
    with pytest.raises(ValueError, match="table, measured, free"):
        HostSpec("h", "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="replicas"):
        replace(SPEC, replicas=0)
    for replicas, routing in ((2, "none"), (1, "random")):
        with pytest.raises(
            ValueError, match=f"routing={routing} with replicas={replicas}: one replica needs"
        ):
            replace(SPEC, replicas=replicas, routing=routing)


@pytest.mark.parametrize("change", [{"seed": 1}, {"engine_args": {"max_num_seqs": 9, "enforce_eager": True}}])
def test_what_a_forked_trial_can_change_shares_an_engine(change: dict[str, Any]) -> None:
    assert replace(SPEC, **change).engine_key() == SPEC.engine_key()


def test_several_replicas_share_servers_of_the_same_settings() -> None:
    two, four = replace(SPEC, replicas=2, routing="random"), replace(SPEC, replicas=4, routing="cache_aware")
    assert two.engine_key() == four.engine_key()
    narrow = replace(four, engine_args={**SPEC.engine_args, "max_num_seqs": 9})
    assert narrow.engine_key() != four.engine_key()
    assert four.num_gpus == 4


@pytest.mark.parametrize(
    "change",
    [
        {"tensor_parallel_size": 2},
        {"gpu": "h100"},
        {"host": HostSpec("h", "free")},
        {"engine_args": {"max_num_seqs": 8}},
        {"model": ModelShape("m", {**CONFIG, "num_hidden_layers": 31})},
    ],
)
def test_what_an_engine_start_fixes_needs_another_engine(change: dict[str, Any]) -> None:
    assert replace(SPEC, **change).engine_key() != SPEC.engine_key()
