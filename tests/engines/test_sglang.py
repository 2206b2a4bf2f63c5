"""Unmodified SGLang under emulation: its own event loop, graphs and radix cache, no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from revati.deployment.runner import TemplateClient, TemplateServer, TrialResult
from revati.spec import DeploymentSpec
from revati.workload import LognormalLengths, Sessions, SharedPrefixes, Workload
from tests.engines.prefixes import cached_tokens

MakeSpec = Callable[..., DeploymentSpec]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first run ever installs SGLang

# Few graphs, so that an engine starts in seconds.
FEW_GRAPHS = {"cuda_graph_max_bs_decode": 16, "cuda_graph_max_bs_prefill": 256}

LARGEST_CUSTOM_ALL_REDUCE_BYTES = 8 << 20  # larger ones are NCCL's


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload.from_poisson(
        "test", request_rate_per_s=200.0, num_requests=30, lengths=LognormalLengths(output_max=40), seed=3
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemplateClient]:
    with TemplateServer(tmp_path_factory.mktemp("sglang"), ["sglang"]) as running:
        yield TemplateClient(running.socket_path)


def columns(result: TrialResult) -> dict[str, np.ndarray]:
    assert result.status == "ok", result.reason
    assert result.requests_path is not None
    table = pq.read_table(result.requests_path)
    return {name: table[name].to_numpy() for name in ("ttft_s", "e2e_s", "output_tokens")} | {
        "tokens": np.array([len(times) for times in table["token_times_us"].to_pylist()])
    }


def test_requests_get_their_tokens_and_knobs_act_on_a_warm_engine(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, tmp_path: Path
) -> None:
    spec = make_spec(engine="sglang", engine_args=FEW_GRAPHS)
    first = columns(client.run(spec, workload, tmp_path / "first"))
    assert first["tokens"].tolist() == workload.output_tokens.tolist()
    again = columns(client.run(spec, workload, tmp_path / "again"))
    assert again["e2e_s"].tolist() == first["e2e_s"].tolist()
    other = columns(client.run(replace(spec, seed=spec.seed + 1), workload, tmp_path / "other"))
    assert other["e2e_s"].tolist() != first["e2e_s"].tolist()
    one = make_spec(engine="sglang", engine_args={**FEW_GRAPHS, "max_running_requests": 1})
    alone = columns(client.run(one, workload, tmp_path / "one"))
    assert alone["ttft_s"].max() > 3 * first["ttft_s"].max()
    batches = pq.read_table(tmp_path / "one" / "phases.parquet")["requests"].to_numpy()
    assert batches.max() == 1


def test_turns_and_prefixes_are_found_in_the_radix_cache(
    client: TemplateClient, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """To the token: what clients send back of an answer is what the emulated model has sampled."""
    workload = Workload.from_poisson(
        "w", request_rate_per_s=1.0, num_requests=24, lengths=LognormalLengths(output_max=60), seed=3,
        prefixes=SharedPrefixes(groups=2, tokens=256), sessions=Sessions(turns=3, think_time_s=0.5),
    )  # fmt: skip
    result = client.run(make_spec(engine="sglang", engine_args=FEW_GRAPHS), workload, tmp_path)
    assert result.status == "ok", result.reason
    # Overlapped scheduling has launched one more step before it sees that an answer is complete.
    expected = cached_tokens(workload, block=1, left_out=0)
    assert pq.read_table(result.requests_path)["cached_tokens"].to_pylist() == expected


def test_decodes_replay_full_graphs_and_prefills_piecewise_ones(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, tmp_path: Path
) -> None:
    result = client.run(make_spec(engine="sglang", engine_args=FEW_GRAPHS), workload, tmp_path)
    assert result.status == "ok", result.reason
    phases = pq.read_table(tmp_path / "phases.parquet").to_pandas()
    executed = phases[phases.phase == "execute"]
    assert set(executed[(executed.prompt_tokens == 0) & (executed.requests <= 16)].kind) == {"full"}
    assert set(executed[executed.prompt_tokens.between(1, 256)].kind) == {"piecewise"}
    assert set(executed[executed.prompt_tokens > 256].kind) <= {"eager"}


def test_two_ranks_are_folded_into_one_process(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, tmp_path: Path
) -> None:
    spec = make_spec(engine="sglang", engine_args=FEW_GRAPHS, tensor_parallel_size=2)
    result = client.run(spec, workload, tmp_path)
    assert columns(result)["tokens"].tolist() == workload.output_tokens.tolist()
    kernels = pq.read_table(tmp_path / "kernels.parquet").to_pandas()
    reduced = kernels[kernels.name.str.contains("all_reduce|cross_device_reduce")]
    nbytes = reduced["shape"].str.extract(r"(\d+) bytes, 2 ranks", expand=False).astype(int)
    own = reduced.name.str.contains("sglang::cross_device_reduce_1stage<__nv_bfloat16, 2>", regex=False)
    assert own.any()
    assert (own == (nbytes <= LARGEST_CUSTOM_ALL_REDUCE_BYTES)).all()
    assert set(reduced[own].kind) == {"collective"}
    # SGLang's own was measured between two GPUs, from a token of llama13b on.
    measured = own & (nbytes >= 10240)
    assert measured.any()
    assert set(reduced[measured].provenance) <= {"measured", "interpolated"}
    assert reduced.gpu_time_us.min() > 0
