"""A small model and one server of warmed engines for all tests of real engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from revati.deployment.runner import TemplateClient, TemplateServer
from revati.spec import DeploymentSpec, HostSpec, ModelShape
from revati.workload import LognormalLengths, Workload

pytest.importorskip("vllm")

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MakeSpec = Callable[..., DeploymentSpec]


@pytest.fixture(scope="session")
def make_spec() -> MakeSpec:
    def make(**changes: Any) -> DeploymentSpec:
        model = ModelShape("tiny", {**TINY, **changes.pop("hf_config", {})})
        fields = {"engine": "vllm", "model": model, "gpu": "h200", "host": HostSpec("h200_xeon"), **changes}
        return DeploymentSpec(**fields)

    return make


@pytest.fixture(scope="session")
def workload() -> Workload:
    return Workload.from_poisson(
        "test", request_rate_per_s=30.0, num_requests=40, lengths=LognormalLengths(output_max=60), seed=3
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemplateServer]:
    with TemplateServer(tmp_path_factory.mktemp("engines")) as running:
        yield running


@pytest.fixture
def client(server: TemplateServer) -> TemplateClient:
    return TemplateClient(server.socket_path)


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    return tmp_path / "trial"
