"""The batches that attention is measured with: decodes, prompts, both, and contexts that begin alike."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from revati.profile.parts import Row
from revati.timing.attention_features import GRAPH_MAX_TOKENS

BLOCK_TOKENS = 16
MAX_BATCH_CONTEXT = 400_000
MAX_QUERY_TOKENS = 8192
DECODE_CONTEXTS = (
    *(16, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768),
    *(1024, 1280, 1536, 2048, 3072, 4096, 8192),
)
MIXED_PROMPTS = (
    *((30,), (80,), (128,), (240,), (400, 120), (700,), (1024,), (240,) * 5),
    *((2048,), (500, 900, 200), (240,) * 16, (4096,), (300,) * 24, (7000,)),
)
# (new tokens by request, mean of what it has in the cache): a known beginning, or an earlier chunk.
CONTINUED_PROMPTS = (
    *(((16,), 512), ((30,), 2048), ((64,), 1024), ((128,), 512), ((128,), 4096), ((240,), 1500)),
    *(((128,) * 3, 1000), ((60,) * 8, 600), ((30,) * 16, 1500), ((400, 120), 800), ((512,), 2048)),
    *(((1024,), 1024), ((300,) * 6, 1000), ((700, 200), 3000), ((2048,), 2048), ((2048,), 6000)),
    *(((120,) * 20, 500), ((4096, 500), 4000)),
)
SHARING_PROMPTS = ((), (128,), (100,) * 3, (100,) * 8, (300,) * 3)
PREFILL_TOKENS = (
    *(16, 32, 64, 96, 128, 192, 256, 384, 512, 768),
    *(1024, 1280, 1536, 2048, 3072, 4096, 6144, 8192),
)


@dataclass(frozen=True, slots=True)
class Batch:
    mode: str  # 'graph' | 'eager'
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]  # including the query tokens
    groups: int = 0  # of requests, in turn, that have the beginnings of their contexts in the same blocks
    shared_tokens: int = 0  # of each context, in whole blocks

    @classmethod
    def of_row(cls, row: Row) -> Batch:
        """The batch that a row of the database is about."""
        return cls(row["variant"], tuple(row["query_lens"]), tuple(row["context_lens"]))


def decode_batches() -> Iterator[Batch]:
    for batch in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512):
        for context in DECODE_CONTEXTS:
            if batch * context <= MAX_BATCH_CONTEXT:
                yield Batch("graph", (1,) * batch, (context,) * batch)
    for batch in (1, 4, 16, 32, 64, 128, 256, 512, 768, 1024):
        for context in (64, 256, 1024, 4096):
            if batch * context <= MAX_BATCH_CONTEXT:
                yield Batch("eager", (1,) * batch, (context,) * batch)


def ragged_decode_batches() -> Iterator[Batch]:
    """Lognormal contexts, as a serving batch has them."""
    draw = random.Random(1)
    sizes = (
        *(2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96),
        *(128, 160, 192, 224, 256, 320, 384, 512),
    )
    for batch in sizes:
        for mean, sigma in ((150, 0.5), (250, 0.8), (400, 1.0), (600, 0.6), (1100, 0.2), (1200, 1.0)):
            contexts = _lengths(draw, batch, mean, sigma, 2, 8192)
            if sum(contexts) <= MAX_BATCH_CONTEXT:
                yield Batch("graph", (1,) * batch, contexts)
                if batch in (8, 32, 128, 512):
                    yield Batch("eager", (1,) * batch, contexts)


def served_decode_batches() -> Iterator[Batch]:
    """Any number of running decodes."""
    spread, grown = random.Random(5), random.Random(7)
    for batch in (*range(2, 32, 3), *range(32, 264, 8), *range(272, 513, 40)):
        drawn = [_spread(spread, batch) for _ in range(4)] + [_grown(grown, batch) for _ in range(4)]
        for contexts in drawn:
            if sum(contexts) <= MAX_BATCH_CONTEXT:
                yield Batch("graph", (1,) * batch, contexts)
                if batch % 16 == 0:
                    yield Batch("eager", (1,) * batch, contexts)


def served_mixed_batches() -> Iterator[Batch]:
    """Any number of running decodes, and some prompts of any length."""
    for seed, contexts_of in ((6, _spread), (8, _grown)):
        draw = random.Random(seed)
        for _ in range(120):
            contexts = contexts_of(draw, round(_log_uniform(draw, 1, 400)))
            prompts = _lengths(draw, draw.randint(1, 6), _log_uniform(draw, 40, 1200), 0.8, 4, 4096)
            yield from _with_prompts(contexts, prompts)


def prefill_batches() -> Iterator[Batch]:
    for query in PREFILL_TOKENS:
        for before in (0, 512, 2048, 4096):
            mode = mode_of((query,))
            yield Batch(mode, (query,), (query + before,))
            if mode == "graph" and before in (0, 2048):
                yield Batch("eager", (query,), (query + before,))
    draw = random.Random(2)
    for requests in (2, 2, 3, 3, 4, 4, 5, 6, 8, 8, 10, 12, 16, 20, 24, 32, 40, 48):
        for mean in (60, 240, 500, 1000):
            lens = _lengths(draw, requests, mean, 0.9, 4, 2048)
            if sum(lens) <= MAX_QUERY_TOKENS:
                yield Batch(mode_of(lens), lens, lens)


def mixed_batches() -> Iterator[Batch]:
    """Running decodes and one or a few prompts in the same step."""
    draw = random.Random(3)
    for decodes in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 480):
        for prompts in MIXED_PROMPTS:
            mean = draw.choice((250, 600, 1200))
            yield from _with_prompts(_lengths(draw, decodes, mean, 0.8, 2, 4096), prompts)


def continued_batches() -> Iterator[Batch]:
    """Prompts of which the cache has the beginning, alone and in the same step as running decodes."""
    draw = random.Random(4)
    for decodes in (0, 2, 8, 16, 32, 64, 96, 128, 192, 256):
        for prompts, before in CONTINUED_PROMPTS:
            contexts = _lengths(draw, decodes, draw.choice((250, 600, 1200, 2200)), 0.6, 2, 4096)
            cached = _lengths(draw, len(prompts), before, 0.3, BLOCK_TOKENS, 8192)
            query = (1,) * decodes + prompts
            context = (*contexts, *(new + old for new, old in zip(prompts, cached, strict=True)))
            if sum(context) <= MAX_BATCH_CONTEXT:
                mode = mode_of(query)
                yield Batch(mode, query, context)
                if mode == "graph" and not decodes:  # as SGLang launches it
                    yield Batch("eager", query, context)


def sharing_batches() -> Iterator[Batch]:
    """Decodes and prompts behind contexts that begin alike, and for comparison without that."""
    for requests in (8, 16, 32, 64, 128, 256):
        for context in (600, 1100, 2200, 4200):
            if requests * context > MAX_BATCH_CONTEXT:
                continue
            for prompts in SHARING_PROMPTS:
                query = (1,) * requests + prompts
                contexts = (context,) * len(query)
                mode = mode_of(query)
                yield Batch(mode, query, contexts)
                for groups in (1, 4, 16):
                    for shared in (context // 2, context - max((100, *prompts))):
                        if groups < requests:
                            whole = shared // BLOCK_TOKENS * BLOCK_TOKENS
                            yield Batch(mode, query, contexts, groups, whole)


def first_batches() -> list[Batch]:
    return [
        *decode_batches(),
        *ragged_decode_batches(),
        *prefill_batches(),
        *mixed_batches(),
        *continued_batches(),
    ]


def batches_between() -> list[Batch]:
    """A second pass: as serving has them, of any size and lengths between those of the first."""
    return [*served_decode_batches(), *served_mixed_batches()]


def mode_of(query_lens: tuple[int, ...]) -> str:
    """As vLLM launches a batch."""
    return "graph" if sum(query_lens) <= GRAPH_MAX_TOKENS else "eager"


def _with_prompts(contexts: tuple[int, ...], prompts: tuple[int, ...]) -> Iterator[Batch]:
    """Decodes at these contexts and the prompts in one step, if it is not too large."""
    query, context = (1,) * len(contexts) + prompts, contexts + prompts
    if sum(context) <= MAX_BATCH_CONTEXT and sum(query) <= MAX_QUERY_TOKENS:
        yield Batch(mode_of(query), query, context)


def _spread(draw: random.Random, count: int) -> tuple[int, ...]:
    """Contexts of any mean and spread."""
    mean, sigma = _log_uniform(draw, 120, 2500), draw.uniform(0.2, 1.0)
    return _lengths(draw, count, mean, sigma, 2, 8192)


def _grown(draw: random.Random, count: int) -> tuple[int, ...]:
    """Prompts, and what was generated since: as much for all, or anything up to that."""
    prompts = _lengths(draw, count, _log_uniform(draw, 40, 2000), draw.uniform(0.3, 1.1), 2, 8192)
    most, at_once = round(_log_uniform(draw, 10, 1000)), draw.random() < 0.5
    return tuple(prompt + (most if at_once else draw.randint(1, most)) for prompt in prompts)


def _log_uniform(draw: random.Random, low: float, high: float) -> float:
    return math.exp(draw.uniform(math.log(low), math.log(high)))


def _lengths(
    draw: random.Random, count: int, mean: float, sigma: float, low: int, high: int
) -> tuple[int, ...]:
    """Lognormal lengths with the given mean, cut to [low, high]."""
    location = math.log(mean) - sigma * sigma / 2
    return tuple(int(min(high, max(low, draw.lognormvariate(location, sigma)))) for _ in range(count))
