"""Clients of a real engine, in its frontend's own process and event loop."""

from __future__ import annotations

import asyncio
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from revati.deployment.metrics import summarize
from revati.deployment.prompts import Turns
from revati.profile.host_load import Request
from revati.workload import Workload

now = time.monotonic
_LEAD_S = 0.05  # from a segment's begin to its start


@dataclass
class Outcome:
    """What the client saw of a request; times are CLOCK_MONOTONIC seconds."""

    request_id: str
    segment: str
    arrival_s: float
    submitted_s: float
    prompt_tokens: int
    output_tokens: int
    token_times_s: list[float]
    # The engine core's own statistics
    queued_s: float = math.nan
    scheduled_s: float = math.nan
    engine_first_token_s: float = math.nan
    engine_last_token_s: float = math.nan
    cached_tokens: int | None = None  # of the prompt, that the engine found in its prefix cache


class Client(ABC):
    """A load generator in the frontend's own process and event loop.

    Sends requests when they arrive, whatever came of others; a session's next turn after its answer.

    Args:
        vocabulary: of the engine's model, for prompts of any content.
    """

    def __init__(self, vocabulary: int, seed: int = 11) -> None:
        self.rng = random.Random(seed)
        self.vocabulary = vocabulary
        self.count = 0
        self.outcomes: list[Outcome] = []  # of all segments, as they were sent

    @abstractmethod
    async def follow(self, prompt: list[int], outcome: Outcome) -> list[int]:
        """Send a request, note in ``outcome`` what comes and when; returns the answer's tokens."""

    async def segment(self, name: str, requests: list[Request], turns: Turns | None = None) -> list[Outcome]:
        """Send a segment's requests at their arrivals and wait for all outputs.

        Args:
            turns: which of them follow an answer; None: none does.

        Returns what came of them, in their order.
        """
        prompts = [request.prompt or self.prompt(request.prompt_tokens) for request in requests]
        outcomes: dict[int, Outcome] = {}
        start = now() + _LEAD_S

        async def converse(index: int, arrival_s: float) -> None:
            while True:
                prompt, tokens = prompts[index], requests[index].output_tokens
                self.count += 1
                outcomes[index] = outcome = Outcome(
                    f"q{self.count}", name, arrival_s, now(), len(prompt), tokens, []
                )
                self.outcomes.append(outcome)
                said = prompt + await self.follow(prompt, outcome)
                if turns is None or (turn := turns.after(index)) is None:
                    return
                index, arrival_s = turn.index, outcome.token_times_s[-1] + turn.think_s
                prompts[index] = said + prompts[index][len(said) :]  # what was really answered
                await _until(arrival_s)

        tasks = []
        for index in turns.first if turns else range(len(requests)):
            arrival_s = start + requests[index].arrival_s
            await _until(arrival_s)
            tasks.append(asyncio.create_task(converse(index, arrival_s)))
        await asyncio.gather(*tasks)
        return [outcomes[index] for index in range(len(requests))]

    def prompt(self, tokens: int) -> list[int]:
        return [self.rng.randrange(10, self.vocabulary - 10) for _ in range(tokens)]


class VllmClient(Client):
    """A client of vLLM's `AsyncLLM`."""

    def __init__(self, engine: Any, vocabulary: int) -> None:
        super().__init__(vocabulary)
        self.engine = engine

    async def follow(self, prompt: list[int], outcome: Outcome) -> list[int]:
        from revati.engines.vllm.sampling import sampling_parameters

        answer: list[int] = []
        parameters = sampling_parameters(outcome.output_tokens)
        async for output in self.engine.generate(
            {"prompt_token_ids": prompt}, parameters, outcome.request_id
        ):
            at, new = now(), output.outputs[0].token_ids
            answer += new
            outcome.token_times_s.extend([at] * len(new))
        outcome.cached_tokens = output.num_cached_tokens
        outcome.queued_s, outcome.scheduled_s = output.metrics.queued_ts, output.metrics.scheduled_ts
        outcome.engine_first_token_s = output.metrics.first_token_ts
        outcome.engine_last_token_s = output.metrics.last_token_ts
        return answer


async def _until(moment_s: float) -> None:
    if (pause_s := moment_s - now()) > 0:
        await asyncio.sleep(pause_s)


def requests_table(outcomes: Sequence[Outcome], start_s: float, workload: Workload) -> pa.Table:
    """One row a request of a workload, in its order; times in seconds from ``start_s`` (CLOCK_MONOTONIC)."""
    first = np.array([outcome.token_times_s[0] for outcome in outcomes])
    last = np.array([outcome.token_times_s[-1] for outcome in outcomes])
    arrival = np.array([outcome.arrival_s for outcome in outcomes])
    gaps = np.array([max(1, len(outcome.token_times_s) - 1) for outcome in outcomes])
    stats = ("queued_s", "scheduled_s", "engine_first_token_s", "engine_last_token_s")
    return pa.table(
        {
            "arrival_s": np.round(arrival - start_s, 9),  # the same in every repeat
            "submitted_s": np.array([outcome.submitted_s for outcome in outcomes]) - start_s,
            "prompt_tokens": [outcome.prompt_tokens for outcome in outcomes],
            "output_tokens": [len(outcome.token_times_s) for outcome in outcomes],
            **workload.sharing_columns(),
            "cached_tokens": pa.array([outcome.cached_tokens for outcome in outcomes], pa.int64()),
            "ttft_s": first - arrival,
            "e2e_s": last - arrival,
            "tpot_s": (last - first) / gaps,
            **{name: np.array([getattr(outcome, name) for outcome in outcomes]) - start_s for name in stats},
            "token_times_us": pa.array(
                [
                    np.round((np.array(outcome.token_times_s) - outcome.arrival_s) * 1e6).astype(np.int32)
                    for outcome in outcomes
                ],
                pa.list_(pa.int32()),
            ),
        }
    )


def measured_metrics(requests: pa.Table, num_gpus: int) -> dict[str, float]:
    """What `summarize` says of a run, without what is not known."""
    metrics = summarize(requests, num_gpus)
    return {name: value for name, value in metrics.items() if not math.isnan(value)}
