"""What a scheduled SGLang batch computes, request by request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from revati.engines.beginnings import group_of
from revati.timing.sharing import Beginnings


@dataclass(frozen=True, slots=True)
class BatchLengths:
    """Lengths of one step's requests in tokens, in the order of the batch.

    ``query_lens``: tokens that the step computes. ``context_lens``: the same and all before them.
    ``num_prefills``: requests that compute prompt tokens, ``prompt_tokens`` of them in all.
    """

    query_lens: list[int]
    context_lens: list[int]
    num_prefills: int
    prompt_tokens: int


def lengths_of(batch: Any) -> BatchLengths:
    """Describe a ``ScheduleBatch``; in a mixed one, decodes follow the prefills."""
    context_lens: list[int] = batch.seq_lens_cpu.tolist()
    if batch.forward_mode.is_decode():
        return BatchLengths([1] * len(context_lens), context_lens, 0, 0)
    query_lens = [int(length) for length in batch.extend_lens]
    num_prefills = len(query_lens)
    if batch.forward_mode.is_mixed():
        num_prefills -= len(batch.decoding_reqs or ())
    return BatchLengths(query_lens, context_lens, num_prefills, sum(query_lens[:num_prefills]))


def beginnings_of(batch: Any) -> Beginnings | None:
    """Of a ``ScheduleBatch``'s contexts; None if the radix cache had none of them."""
    tokens = [int(req.cached_tokens) for req in batch.reqs]
    if not any(tokens):
        return None
    return Beginnings([group_of(req.origin_input_ids) for req in batch.reqs], tokens)
