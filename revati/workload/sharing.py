"""What prompts have in common: prefixes of groups of requests, and earlier turns of a session."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from revati.workload.errors import WorkloadError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
NONE = -1  # no group, no session, no next turn

_Options = TypeVar("_Options", "SharedPrefixes", "Sessions")


@dataclass(frozen=True, slots=True, eq=False)
class Sharing:
    """Per request, arrays of shape (n,):

    ``prefix_group``: whose prefix its prompt begins with, -1: nobody's; ``prefix_tokens``: how much of it.
    ``session``: the conversation that it is a turn of, -1: none. A turn's prompt begins with all of the turn
    before, prompt and answer; the client sends it ``think_s`` seconds after that answer's last token.
    """

    prefix_group: IntArray
    prefix_tokens: IntArray
    session: IntArray
    think_s: FloatArray

    def next_turn(self) -> IntArray:
        """For each request the one that follows in its session, -1 where there is none; shape (n,)."""
        following = np.full(len(self.session), NONE, np.int64)
        last: dict[int, int] = {}
        for index, session in enumerate(self.session.tolist()):
            if session == NONE:
                continue
            if session in last:
                following[last[session]] = index
            last[session] = index
        return following

    def check(self, prompt_tokens: IntArray, output_tokens: IntArray) -> None:
        """Raise WorkloadError where prompts are too short for what they are said to begin with."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        if any(array.shape != prompt_tokens.shape for array in arrays.values()):
            raise WorkloadError(f"{', '.join(arrays)} must have the length of prompt_tokens")
        if not (np.isfinite(self.think_s).all() and (self.think_s >= 0).all()):
            raise WorkloadError("think_s must be finite and not negative")
        following = self.next_turn()
        turns, later = np.flatnonzero(following != NONE), following[following != NONE]
        if (prompt_tokens[later] <= (prompt_tokens + output_tokens)[turns]).any():
            raise WorkloadError(
                "a session's turn must have more prompt tokens than the turn before has tokens in all"
            )
        grouped = self.prefix_group != NONE
        if (self.prefix_tokens[grouped] < 1).any() or (prompt_tokens < self.prefix_tokens)[grouped].any():
            raise WorkloadError("prefix_tokens must be from 1 to prompt_tokens where there is a prefix_group")


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Groups of prompts with a prefix in common, such as an application's instructions.

    ``tokens``: length of a prefix; it comes on top of a request's own prompt length. ``skew``: exponent of
    Zipf's law for how popular a group is; 0: all alike.
    """

    groups: int = 8
    tokens: int = 1024
    skew: float = 0.0

    def __post_init__(self) -> None:
        if self.groups < 1 or self.tokens < 1 or self.skew < 0:
            raise WorkloadError(
                f"prefixes: groups and tokens must be 1 or more and skew 0 or more, got "
                f"{self.groups}, {self.tokens} and {self.skew}"
            )

    def draw(self, count: int, rng: np.random.Generator) -> IntArray:
        """The groups of ``count`` requests or sessions; shape (count,)."""
        weights = np.arange(1, self.groups + 1, dtype=np.float64) ** -self.skew
        return rng.choice(self.groups, count, p=weights / weights.sum()).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations: each turn's prompt contains the turns before it.

    ``turns``: of a session. ``think_time_s``: mean of the exponential time from an answer to the next turn.
    ``context_tokens_max``: a session whose next turn would need more ends before it.
    """

    turns: int = 4
    think_time_s: float = 5.0
    context_tokens_max: int = 4096

    def __post_init__(self) -> None:
        if self.turns < 1 or self.think_time_s < 0 or self.context_tokens_max < 1:
            raise WorkloadError(
                "sessions: turns and context_tokens_max must be 1 or more and think_time_s 0 or more, got "
                f"{self.turns}, {self.context_tokens_max} and {self.think_time_s}"
            )

    def assign(self, own_prompt: IntArray, output: IntArray, prefix_tokens: int) -> tuple[IntArray, IntArray]:
        """Share out turns to sessions, one session after the other.

        Args:
            own_prompt: tokens that each turn's user writes, shape (n,).
            output: tokens of each answer, shape (n,).
            prefix_tokens: that each session's first prompt begins with.

        Returns:
            session and whole prompt length of each turn, both of shape (n,).

        Raises:
            WorkloadError: a first turn alone is longer than a context may be.
        """
        session, prompt = np.empty_like(own_prompt), np.empty_like(own_prompt)
        current, turn, context = NONE, self.turns, 0
        for index, (own, answer) in enumerate(zip(own_prompt.tolist(), output.tolist(), strict=True)):
            if turn == self.turns or context + own + answer > self.context_tokens_max:
                current, turn, context = current + 1, 0, prefix_tokens
                if context + own + answer > self.context_tokens_max:
                    raise WorkloadError(
                        f"sessions.context_tokens_max={self.context_tokens_max} is less than the "
                        f"{context + own + answer} tokens of a first turn"
                    )
            session[index], prompt[index] = current, context + own
            turn, context = turn + 1, context + own + answer
        return session, prompt

    def think(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Times from an answer to the next turn, seconds, shape (count,)."""
        return rng.exponential(self.think_time_s, count) if self.think_time_s else np.zeros(count)


def prefixes_from_config(config: Mapping[str, Any]) -> SharedPrefixes | None:
    """Read ``workload.prefixes``; empty: no prompt shares a prefix."""
    return None if not config else _from_config(SharedPrefixes, "prefixes", config)


def sessions_from_config(config: Mapping[str, Any]) -> Sessions | None:
    """Read ``workload.sessions``; empty: every request is for itself."""
    return None if not config else _from_config(Sessions, "sessions", config)


def _from_config(kind: type[_Options], what: str, config: Mapping[str, Any]) -> _Options:
    types = {field.name: field.type for field in fields(kind)}
    for name, value in config.items():
        if name not in types:
            raise WorkloadError(f"unknown option {name!r} of {what}; use {', '.join(types)}")
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (types[name] == "int" and not isinstance(value, int)):
            needed = "an integer" if types[name] == "int" else "a number"
            raise WorkloadError(f"option {name!r} of {what} must be {needed}, got {value!r}")
    return kind(**config)
