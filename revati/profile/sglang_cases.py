"""What `sglang_runs` serves: an engine's settings, its workloads, and the scenes to trace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from revati.profile.truth.cases import Load

SEED = 1234
SHAREGPT = {"kind": "lognormal"}


def _poisson(request_rate_per_s: int, num_requests: int) -> Load:
    return Load(
        f"sg_r{request_rate_per_s}",
        "poisson",
        SHAREGPT,
        request_rate_per_s=request_rate_per_s,
        seconds=num_requests / request_rate_per_s,
        seed=SEED,
    )


def _sharing(request_rate_per_s: int, num_requests: int, groups: int) -> Load:
    return replace(
        _poisson(request_rate_per_s, num_requests),
        name=f"shared_r{request_rate_per_s}",
        lengths=SHAREGPT | {"prompt_max": 512, "output_max": 400},
        prefixes={"groups": groups, "tokens": 2048},
    )


def _documents(request_rate_per_s: int, num_requests: int) -> Load:
    """Long prompts: a few at once are computed in chunks."""
    documents = {"prompt_median": 3000, "prompt_max": 7500, "output_median": 150, "output_max": 500}
    return replace(
        _poisson(request_rate_per_s, num_requests),
        name=f"long_r{request_rate_per_s}",
        lengths=SHAREGPT | {"prompt_sigma": 0.6, "output_sigma": 0.6} | documents,
    )


# More than any engine keeps up with: what it can serve.
SATURATED = (
    Load(
        "off_2048x32",
        "offline",
        {"kind": "fixed", "prompt_tokens": 2048, "output_tokens": 32},
        num_requests=200,
        seed=SEED,
    ),
    Load("off_sg", "offline", SHAREGPT, num_requests=400, seed=SEED),
)


@dataclass(frozen=True)
class Case:
    """One engine: its settings, its workloads, and the scenes to trace.

    Scenes are decodes of so many requests with prompts from some tokens to others, and prefills of so many
    tokens.
    """

    model: str
    loads: tuple[Load, ...]
    engine_args: dict[str, Any] = field(default_factory=dict)
    brief: bool = True
    decodes: tuple[int, ...] = ()
    decode_prompts: tuple[tuple[int, int], ...] = ((150, 450),)
    prefills: tuple[int, ...] = ()

    def parallel(self, way: str) -> int:
        """Ranks; way is tp or pp."""
        return int(self.engine_args.get(f"{way}_size", 1))


CASES = {
    "tp1": Case(
        "llama13b",
        (_poisson(6, 150), _poisson(10, 200), _poisson(12, 240), SATURATED[1], _sharing(8, 100, 64)),
        brief=False,
        decodes=(1, 2, 4, 8, 16, 32, 64, 128, 256, 300),
        prefills=(16, 64, 128, 256, 512, 1024, 2048, 4000, 8000),
    ),
    "llama31_8b": Case(
        "llama31_8b",
        (
            *(_poisson(10, 150), _poisson(20, 240), SATURATED[1], _sharing(20, 200, 16)),
            *(_documents(4, 48), _documents(7, 70)),
        ),
        decodes=(1, 8, 32, 64, 128, 192, 256, 300),
        decode_prompts=((150, 450), (900, 1500)),
        prefills=(16, 128, 512, 1024, 2048, 4000),
    ),
    "qwen3_8b": Case(
        "qwen3_8b",
        (_poisson(10, 150), _poisson(20, 240)),
        decodes=(1, 8, 32, 128, 256),
        prefills=(16, 128, 512, 1024, 2048, 4000),
    ),
    "mistral_7b": Case("mistral_7b", (_poisson(10, 150), _poisson(20, 240))),
    "qwen25_14b": Case("qwen25_14b", (_poisson(6, 100), _poisson(12, 180), SATURATED[1])),
    "llama32_3b": Case("llama32_3b", (_poisson(15, 150), _poisson(40, 320))),
    "qwen25_32b": Case("qwen25_32b", (_poisson(4, 50), _poisson(7, 90))),
    "tp2": Case(
        "llama13b",
        (_poisson(12, 240), _poisson(20, 360), *SATURATED),
        {"tp_size": 2},
        decodes=(1, 8, 32, 128, 256),
        prefills=(128, 512, 768, 1024, 1500, 4000),
    ),
    "pp2": Case(
        "llama13b", (_poisson(12, 240), *SATURATED), {"pp_size": 2}, decodes=(8, 64), prefills=(1024,)
    ),
    "pp4": Case(
        "llama13b", (_poisson(12, 240), _poisson(24, 400)), {"pp_size": 4}, decodes=(8, 64), prefills=(1024,)
    ),
}
