"""Prompt and output lengths of requests, drawn from a seeded generator."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from revati.workload.errors import WorkloadError

IntArray = npt.NDArray[np.int64]


class Lengths(Protocol):
    """A distribution of (prompt_tokens, output_tokens)."""

    def draw(self, count: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths in tokens, each of shape (count,) and at least 1."""


@dataclass(frozen=True, slots=True)
class FixedLengths:
    """Every request has the same lengths, in tokens."""

    prompt_tokens: int = 1024
    output_tokens: int = 128

    def __post_init__(self) -> None:
        _require_positive(prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        return (
            np.full(count, self.prompt_tokens, np.int64),
            np.full(count, self.output_tokens, np.int64),
        )


@dataclass(frozen=True, slots=True)
class LognormalLengths:
    """Lognormal lengths, clipped; the defaults resemble ShareGPT conversations.

    With the defaults the mean is about 240 prompt and 185 output tokens. A median is in tokens, a
    sigma is the standard deviation of the length's natural logarithm.
    """

    prompt_median: float = 141.0
    prompt_sigma: float = 1.05
    prompt_max: int = 2048
    output_median: float = 141.0
    output_sigma: float = 0.75
    output_max: int = 600

    def __post_init__(self) -> None:
        _require_positive(
            prompt_median=self.prompt_median,
            prompt_max=self.prompt_max,
            output_median=self.output_median,
            output_max=self.output_max,
        )
        if self.prompt_sigma < 0 or self.output_sigma < 0:
            raise WorkloadError(
                f"prompt_sigma and output_sigma must be 0 or more, got {self.prompt_sigma} "
                f"and {self.output_sigma}"
            )

    def draw(self, count: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        prompt = rng.lognormal(math.log(self.prompt_median), self.prompt_sigma, count)
        output = rng.lognormal(math.log(self.output_median), self.output_sigma, count)
        return _to_tokens(prompt, self.prompt_max), _to_tokens(output, self.output_max)


def lengths_from_config(config: Mapping[str, Any]) -> Lengths:
    """Build lengths from a mapping such as ``{"kind": "fixed", "prompt_tokens": 1024}``.

    ``kind`` is "sharegpt" or "lognormal" (`LognormalLengths`) or "fixed" (`FixedLengths`); the other
    keys are the fields of that class.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    classes: dict[str, type[FixedLengths] | type[LognormalLengths]] = {
        "sharegpt": LognormalLengths,
        "lognormal": LognormalLengths,
        "fixed": FixedLengths,
    }
    if kind not in classes:
        raise WorkloadError(f"unknown lengths kind {kind!r}; use one of {', '.join(classes)}")
    fields = list(classes[kind].__dataclass_fields__)
    for key, value in options.items():
        if key not in fields:
            raise WorkloadError(f"unknown option {key!r} of {kind} lengths; use {', '.join(fields)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WorkloadError(f"option {key!r} of {kind} lengths must be a number, got {value!r}")
    return classes[kind](**options)


def _to_tokens(lengths: npt.NDArray[np.float64], maximum: int) -> IntArray:
    return np.clip(np.rint(lengths), 1, maximum).astype(np.int64)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise WorkloadError(f"{name} must be greater than 0, got {value}")
