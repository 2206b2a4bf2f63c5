"""Search spaces and knobs: what is accepted, and what a refusal says."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from revati import paths
from revati.engines.vllm.settings import serve_command
from revati.search.errors import ConfigError
from revati.search.space import Choice, Range, SearchSpace, load_space, parse_domain
from tests.search.problems import PROBLEM


@pytest.mark.parametrize("path", sorted(paths.search_spaces_dir().glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_spaces_load(path: Path) -> None:
    engines = yaml.safe_load(path.read_text())["engine"]
    for engine in engines if isinstance(engines, list) else [engines]:
        assert load_space(path.stem, engine, {}).domains


def test_the_default_space_is_the_promised_grid() -> None:
    points = list(load_space("default", "vllm", {}).grid())
    assert len(points) >= 24
    assert {point["tensor_parallel_size"] for point in points} == {1, 2, 4, 8}
    for knob in ("max_num_seqs", "max_num_batched_tokens"):
        assert len({point[knob] for point in points}) > 1


def test_overrides_replace_and_add_knobs() -> None:
    space = load_space("default", "vllm", {"tensor_parallel_size": 2, "enforce_eager": [True, False]})
    assert space.domains["tensor_parallel_size"] == Choice((2,))
    assert space.domains["enforce_eager"] == Choice((True, False))


@pytest.mark.parametrize(
    ("knob", "value", "accepted"),
    [
        ("max_num_seq", 1, "max_num_seqs"),
        ("max_num_seqs", "abc", "an integer from 1"),
        ("max_num_seqs", 0, "an integer from 1"),
        ("max_num_seqs", True, "an integer from 1"),
        ("max_num_seqs", 1.5, "an integer from 1"),
        ("max_num_seqs", [], "an integer from 1"),
        ("tensor_parallel_size", 3, "1, 2, 4, 8"),
        ("scheduling_policy", "lifo", "fcfs, priority"),
        ("enforce_eager", 1, "true, false"),
        ("quantization", "awq", "none, fp8"),
        ("gpu_memory_utilization", 1.2, "a number from 0.01 to 1.0"),
        ("long_prefill_token_threshold", -1, "an integer >= 0"),
        ("enforce_eager", {"low": 0, "high": 1}, "true, false"),
        ("max_num_seqs", {"low": 1}, "low"),
        ("max_num_seqs", {"low": 9, "high": 1}, "low <= high"),
        ("max_num_seqs", {"low": 1, "high": 9, "step": 0}, "step"),
        ("max_num_seqs", {"low": 1, "high": 9, "log": True, "step": 2}, "log"),
        ("max_num_seqs", {"low": 1, "high": "x"}, "an integer from 1"),
    ],
)
def test_refusals_name_what_is_accepted(knob: str, value: Any, accepted: str) -> None:
    with pytest.raises(ConfigError, match=accepted) as caught:
        parse_domain("vllm", knob, value)
    assert "\n" not in str(caught.value)


def test_no_quantisation_has_no_argument() -> None:
    none, fp8 = (PROBLEM.spec({"quantization": value}) for value in ("none", "fp8"))
    assert none.engine_args == PROBLEM.engine_args
    assert serve_command(fp8, "m")[-2:] == ["--quantization", "fp8"]


def test_an_integer_is_a_number() -> None:
    assert parse_domain("vllm", "gpu_memory_utilization", 1) == Choice((1.0,))


@pytest.mark.parametrize(
    ("content", "accepted"),
    [("engine: sglang\nknobs: {}", "vllm"), ("knobs: {}", "engine, knobs"), ("a: [", "no YAML")],
)
def test_bad_space_files(tmp_path: Path, content: str, accepted: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=accepted):
        load_space(str(file), "vllm", {})


def test_unknown_space_names_the_known() -> None:
    with pytest.raises(ConfigError, match="default, routing, scheduler"):
        load_space("nope", "vllm", {})


def test_size_is_that_of_the_grid() -> None:
    space = load_space("default", "vllm", {})
    assert space.size == len(list(space.grid()))
    assert SearchSpace({"max_num_seqs": Range(1, 9)}).size is None


def test_grid_refuses_ranges() -> None:
    with pytest.raises(ConfigError, match="list of values"):
        next(SearchSpace({"max_num_seqs": Range(1, 9)}).grid())


@given(
    st.integers(1, 50),
    st.integers(0, 500),
    st.one_of(st.just((None, True)), st.tuples(st.none() | st.integers(1, 20), st.just(False))),
    st.randoms(use_true_random=False),
)
def test_draws_stay_in_range_and_on_steps(
    low: int, width: int, scale: tuple[int | None, bool], rng: random.Random
) -> None:
    step, log = scale
    value = Range(low, low + width, step=step, log=log).draw(rng)
    assert isinstance(value, int)
    assert low <= value <= low + width
    assert (value - low) % (step or 1) == 0
