"""An open-loop client of a real engine, in the frontend's own process and event loop."""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass
from typing import Any

from revati.profile.host_load import Request

now = time.monotonic


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


class Client:
    """An open-loop load generator in the frontend's own process and event loop."""

    def __init__(self, engine: Any, vocabulary: int, seed: int = 11) -> None:
        self.engine = engine
        self.rng = random.Random(seed)
        self.vocabulary = vocabulary
        self.count = 0
        self.outcomes: list[Outcome] = []

    async def segment(self, name: str, requests: list[Request]) -> None:
        """Send a segment's requests at their arrivals and wait for all outputs."""
        prompts = [self.prompt(request.prompt_tokens) for request in requests]
        start = now() + 0.02
        tasks = []
        for request, prompt in zip(requests, prompts, strict=True):
            if (pause := start + request.arrival_s - now()) > 0:
                await asyncio.sleep(pause)
            self.count += 1
            tasks.append(asyncio.create_task(self.one(name, request, prompt, start, f"q{self.count}")))
        await asyncio.gather(*tasks)

    def prompt(self, tokens: int) -> list[int]:
        return [self.rng.randrange(10, self.vocabulary - 10) for _ in range(tokens)]

    async def one(self, segment: str, request: Request, prompt: list[int], start: float, name: str) -> None:
        from revati.engines.vllm.sampling import sampling_parameters

        parameters = sampling_parameters(request.output_tokens)
        outcome = Outcome(
            name, segment, start + request.arrival_s, now(), len(prompt), request.output_tokens, []
        )
        self.outcomes.append(outcome)
        async for output in self.engine.generate({"prompt_token_ids": prompt}, parameters, name):
            at = now()
            outcome.token_times_s.extend([at] * len(output.outputs[0].token_ids))
        outcome.queued_s, outcome.scheduled_s = output.metrics.queued_ts, output.metrics.scheduled_ts
        outcome.engine_first_token_s = output.metrics.first_token_ts
        outcome.engine_last_token_s = output.metrics.last_token_ts
