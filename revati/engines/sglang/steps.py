"""What SGLang's steps cost and compute: host phases charged, batches announced, tokens supplied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.model_executor.runner.base_cuda_graph_runner import BaseCudaGraphRunner

from revati.engines.sglang.batch import beginnings_of, lengths_of
from revati.engines.tokens import ordinary_token_id
from revati.timing.attach import LaunchPricing
from revati.virtual_time.host import IDLE_STEP, HostMeter, StepKind, StepShape


class ChargedSteps:
    """Encloses the methods of one scheduler that make up a step.

    Args:
        scheduler: SGLang's, which may be under construction.
    """

    def __init__(self, scheduler: Any, pricing: LaunchPricing, meter: HostMeter) -> None:
        self._scheduler, self._pricing, self._meter = scheduler, pricing, meter
        self._launched: dict[int, tuple[StepShape, list[int]]] = {}  # step, sampled token ids
        self.processed = IDLE_STEP  # whose outputs were handled last

    def schedule(self, get_next_batch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        begin = self._meter.cpu_ns()
        plan = get_next_batch(*args, **kwargs)
        spent_ns = self._meter.cpu_ns() - begin
        step = self._shape(plan.batch_to_run)
        self._meter.charge("schedule", step, spent_ns)
        if self._scheduler.server_args.tp_size > 1:  # the turn has begun with it
            self._meter.charge("broadcast", step)
        return plan

    def run(self, run_batch: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        lengths, step = lengths_of(batch), self._shape(batch)
        self._pricing.set_batch(lengths.query_lens, lengths.context_lens, beginnings_of(batch))
        with self._meter.phase("execute", step):
            result = run_batch(batch, *args, **kwargs)
        vocab_size = self._scheduler.model_config.vocab_size
        tokens = [ordinary_token_id(context, vocab_size) for context in lengths.context_lens]
        self._launched[self._key(batch, result)] = step, tokens
        return result

    def process(self, process_batch_result: Callable[..., Any], batch: Any, result: Any) -> None:
        step, tokens = self._launched.pop(self._key(batch, result))
        self.processed = step
        with self._meter.waiting(step):
            if result.copy_done is not None:
                result.copy_done.synchronize()
        # No kernel ran: the ids in "device" memory mean nothing.
        result.next_token_ids = torch.tensor(tokens)
        with self._meter.phase("update", step):
            process_batch_result(batch, result)

    def _key(self, batch: Any, result: Any) -> int:
        """Overlapped scheduling processes a copy of the batch, a pipeline stage another stage's result."""
        return id(batch if self._scheduler.server_args.pp_size > 1 else result)

    def _shape(self, batch: Any) -> StepShape:
        if not batch:
            return IDLE_STEP
        lengths = lengths_of(batch)
        num_reqs, runner = len(lengths.query_lens), self._scheduler.tp_worker.model_runner
        if batch.forward_mode.is_decode():
            graphs = runner.decode_cuda_graph_runner
            captured = isinstance(graphs, BaseCudaGraphRunner) and num_reqs <= graphs.max_bs
            return StepShape("full" if captured else "eager", num_reqs)
        graphs = runner.prefill_cuda_graph_runner
        captured = (
            isinstance(graphs, BaseCudaGraphRunner) and sum(lengths.query_lens) <= graphs.max_num_tokens
        )
        kind: StepKind = "piecewise" if captured else "eager"
        return StepShape(kind, num_reqs, lengths.prompt_tokens, lengths.num_prefills)
