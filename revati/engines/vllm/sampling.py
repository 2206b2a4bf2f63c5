"""How requests are sampled, whichever way they reach the engine."""

from __future__ import annotations

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from revati.engines.base import Request


def sampling_parameters(request: Request) -> SamplingParams:
    """Greedy, to the planned length, each step's new tokens by themselves."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=request.output_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
