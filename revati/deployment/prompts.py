"""What clients send: the token ids of every prompt, and when a session's next turn is due."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from revati.engines.base import Request
from revati.engines.tokens import ordinary_token_id
from revati.workload import Workload
from revati.workload.sharing import NONE

_PREFIXES = 1  # of the seed sequence: prefixes stay the same whatever the requests are


def make_requests(workload: Workload, vocab_size: int, seed: int) -> list[Request]:
    """Random prompts, as many tokens as the workload says, with the parts in common that it says.

    A turn of a session repeats what an emulated model answers (`ordinary_token_id`) to the turn before.
    """
    rng = np.random.default_rng(seed)
    prompts: list[list[int]] = []
    previous = _previous_turns(workload)
    for index, length in enumerate(workload.prompt_tokens.tolist()):
        start: list[int] = []
        if (turn := previous[index]) != NONE:
            start = prompts[turn] + _answer(len(prompts[turn]), int(workload.output_tokens[turn]), vocab_size)
        elif workload.sharing is not None and (group := int(workload.sharing.prefix_group[index])) != NONE:
            start = _prefix(group, int(workload.sharing.prefix_tokens[index]), vocab_size, seed)
        prompts.append(start + rng.integers(0, vocab_size, length - len(start)).tolist())
    sessions = [NONE] * len(workload) if workload.sharing is None else workload.sharing.session.tolist()
    return [
        Request(index, prompt, int(workload.output_tokens[index]), None if session == NONE else session)
        for index, (prompt, session) in enumerate(zip(prompts, sessions, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class Turn:
    """A request that is sent ``think_s`` after the answer before it."""

    index: int
    think_s: float


class Turns:
    """Which requests arrive at their own time (``first``), and which follow an answer."""

    def __init__(self, workload: Workload) -> None:
        self._sharing = workload.sharing
        self._next = None if workload.sharing is None else workload.sharing.next_turn()
        self.first = [index for index, before in enumerate(_previous_turns(workload)) if before == NONE]

    def after(self, index: int) -> Turn | None:
        """The turn that follows this request's answer."""
        if self._sharing is None or self._next is None or self._next[index] == NONE:
            return None
        following = int(self._next[index])
        return Turn(following, float(self._sharing.think_s[following]))


def _previous_turns(workload: Workload) -> list[int]:
    previous = [NONE] * len(workload)
    if workload.sharing is not None:
        for index, following in enumerate(workload.sharing.next_turn().tolist()):
            if following != NONE:
                previous[following] = index
    return previous


def _prefix(group: int, length: int, vocab_size: int, seed: int) -> list[int]:
    tokens: list[int] = (
        np.random.default_rng([seed, _PREFIXES, group]).integers(0, vocab_size, length).tolist()
    )
    return tokens


def _answer(prompt_tokens: int, output_tokens: int, vocab_size: int) -> list[int]:
    return [ordinary_token_id(prompt_tokens + position, vocab_size) for position in range(output_tokens)]
