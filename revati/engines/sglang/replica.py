"""One SGLang scheduler with its worker, driven turn by turn in virtual time."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sglang.srt.runtime_context as runtime_context
import torch
from sglang.srt.managers.io_struct import BatchTokenIDOutput, TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import PortArgs, ServerArgs
from sglang.srt.utils import configure_logger

from revati.engines.base import InfeasibleError, Request, RequestOutput
from revati.engines.sglang.fold import FoldedRanks
from revati.engines.sglang.kernels import use_measured_norms
from revati.engines.sglang.scheduler import SteppedScheduler
from revati.engines.sglang.settings import server_arguments
from revati.spec import DeploymentSpec
from revati.timing.attach import LaunchPricing
from revati.virtual_time.host import HostMeter, message_shape
from revati.virtual_time.interpreter_lock import InterpreterLock


class SglangReplica:
    """One SGLang engine with its server's default settings, in this process.

    Raises:
        InfeasibleError: SGLang refuses the configuration.
    """

    def __init__(
        self, spec: DeploymentSpec, model_folder: Path, pricing: LaunchPricing, meter: HostMeter
    ) -> None:
        use_measured_norms()
        SteppedScheduler.attach(pricing, meter)
        self._meter = meter
        if spec.tensor_parallel_size > 1:
            FoldedRanks(spec.tensor_parallel_size)
        try:
            settings = ServerArgs(**server_arguments(spec, model_folder))
            configure_logger(settings)
            # SGLang raises these for what does not fit: settings, memory, or both.
            self.scheduler = SteppedScheduler(settings, PortArgs.init_new(settings), *_publish(settings))
        except (ValueError, AssertionError, RuntimeError, torch.OutOfMemoryError) as error:
            raise InfeasibleError(f"{type(error).__name__}: {error}") from error
        self._taken = 0  # requests out of the queue since the last step
        self.lock = InterpreterLock()  # nobody waits for it: the scheduler itself receives and sends

    @property
    def kv_cache_blocks(self) -> int:
        """Tokens that the KV cache holds, in pages (of one token by default)."""
        return int(self.scheduler.max_total_num_tokens) // int(self.scheduler.page_size)

    def add(self, request: Request) -> None:
        """Take one request out of the input queue."""
        message = self._message(request)
        with self._meter.phase("input", message_shape(self._taken > 0, len(request.prompt_token_ids))):
            self.scheduler.process_input_requests([message])
        self._taken += 1

    def has_work(self) -> bool:
        return bool(self.scheduler.has_work())

    def step(self) -> Sequence[RequestOutput]:
        self._taken = 0
        sent: list[RequestOutput] = []
        for output in self.scheduler.turn():
            if not isinstance(output, BatchTokenIDOutput):
                raise RuntimeError(f"SGLang sent {type(output).__name__}: {output}")
            sent.extend(_outputs(output))
        if sent:
            self._meter.charge("output", self.scheduler.steps.processed)
        return sent

    def _message(self, request: Request) -> TokenizedGenerateReqInput:
        parameters = SamplingParams(temperature=0.0, max_new_tokens=request.output_tokens, ignore_eos=True)
        parameters.normalize(None)
        return TokenizedGenerateReqInput(
            rid=str(request.index),
            input_text=None,
            input_ids=array("q", request.prompt_token_ids),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=parameters,
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=True,
        )


def _publish(settings: ServerArgs) -> tuple[int | None, ...]:
    """Make this process the first rank; returns what its scheduler is to be told of that."""
    if not hasattr(runtime_context, "SpawnRanks"):  # SGLang 0.5.20 and before
        runtime_context.publish(settings, role="scheduler")
        return (0, 0, 0, 0, 0, 0, None)
    ranks = runtime_context.SpawnRanks(world_rank=0, gpu_id=0)
    runtime_context.publish(settings, role="scheduler", ranks=ranks)
    return ()


def _outputs(batch: Any) -> list[RequestOutput]:
    assert batch.output_ids is not None
    return [
        RequestOutput(int(rid), len(tokens), finished=reason is not None, cached_tokens=int(cached))
        for rid, tokens, reason, cached in zip(
            batch.rids, batch.output_ids, batch.finished_reasons, batch.cached_tokens, strict=True
        )
    ]
