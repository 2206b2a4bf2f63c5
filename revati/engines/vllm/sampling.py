"""How requests are sampled, whichever way they reach the engine."""

from __future__ import annotations

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind


def sampling_parameters(output_tokens: int) -> SamplingParams:
    """Greedy, to the planned length, each step's new tokens by themselves."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=output_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
