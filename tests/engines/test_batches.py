"""What engines' batches say of contexts that begin alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from revati.engines.sglang.batch import beginnings_of
from revati.engines.vllm.batches import BatchReader

INSTRUCTIONS = list(range(64))


def scheduled(new: dict[str, tuple[list[int], int]], running: dict[str, int], finished: set[str]) -> Any:
    """One of vLLM's steps: new requests' prompts and cached tokens, running ones' computed tokens."""
    requests = [
        SimpleNamespace(
            req_id=name, prompt_token_ids=prompt, prefill_token_ids=None, num_computed_tokens=cached
        )
        for name, (prompt, cached) in new.items()
    ]
    tokens = {name: len(prompt) - cached for name, (prompt, cached) in new.items()}
    return SimpleNamespace(
        scheduled_new_reqs=requests,
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(running), num_computed_tokens=list(running.values())
        ),
        num_scheduled_tokens=dict.fromkeys(running, 1) | tokens,
        finished_req_ids=finished,
    )


def test_vllms_requests_have_in_common_what_the_prefix_cache_had() -> None:
    reader = BatchReader(vocab_size=1000)
    first = reader.read(scheduled({"a": ([*INSTRUCTIONS, 900], 0), "x": ([7] * 65, 0)}, {}, set()))
    assert first.beginnings is None
    second = reader.read(scheduled({"b": ([*INSTRUCTIONS, 901], 64)}, {"a": 65, "x": 65}, set())).beginnings
    assert second is not None
    assert second.tokens == [0, 0, 64]
    assert second.groups[0] == second.groups[2] != second.groups[1]
    reader.read(scheduled({}, {"a": 66, "x": 66}, {"b"}))
    assert reader.read(scheduled({}, {"a": 67, "x": 67}, set())).beginnings is None


def test_sglangs_requests_have_in_common_what_the_radix_cache_had() -> None:
    def request(prompt: list[int], cached_tokens: int) -> SimpleNamespace:
        return SimpleNamespace(origin_input_ids=prompt, cached_tokens=cached_tokens)

    alone = SimpleNamespace(reqs=[request([*INSTRUCTIONS, 900], 0), request([7] * 65, 0)])
    assert beginnings_of(alone) is None
    batch = beginnings_of(SimpleNamespace(reqs=[*alone.reqs, request([*INSTRUCTIONS, 901], 64)]))
    assert batch is not None
    assert batch.tokens == [0, 0, 64]
    assert batch.groups[0] == batch.groups[2] != batch.groups[1]
