"""Baseline: continuous batching as a discrete-event model whose steps last as long as a roofline says.

    PYTHONPATH=. python validation/baselines/roofline.py [DIR ...] [--out validation/predictions/roofline.csv]

Knows the GPU's data sheet (conf/gpu) and the model's shape, nothing measured: a step takes the larger of
FLOPs at the peak rate and bytes at the peak bandwidth, plus all-reduces over NVLink; the host is free.
Scheduling as in vLLM: first come first served, running requests first, chunked prefill under a token budget,
new requests as long as the KV cache holds all their tokens.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from revati.deployment.metrics import summarize
from revati.paths import conf_dir
from revati.profile.options import PRECISIONS
from revati.timing.estimate import RankShape, dtype_bytes
from revati.timing.gpu import GpuLimits, load_limits
from revati.validate.metrics import KV_METRIC
from revati.validate.options import validation_dir
from revati.validate.predictions import Prediction, write_csv
from revati.validate.runs import Case, Unsupported, model_shape, read_cases
from revati.workload import Workload


@dataclass(frozen=True, slots=True)
class Machine:
    """One tensor-parallel rank of one pipeline stage; the others do the same at the same time."""

    shape: RankShape
    limits: GpuLimits
    stages: int
    linear_dtype: str  # of the layers' GEMMs; embedding, logits and attention stay in the shape's

    @property
    def layers(self) -> float:
        return self.shape.num_layers / self.stages

    @property
    def layer_weights(self) -> int:
        """Parameters of a layer's four GEMMs."""
        s = self.shape
        attention = s.hidden * s.head_dim * (2 * s.num_q_heads + 2 * s.num_kv_heads)
        return attention + 3 * s.hidden * s.intermediate

    @property
    def kv_bytes_per_token(self) -> float:
        s = self.shape
        return 2 * s.num_kv_heads * s.head_dim * dtype_bytes(s.dtype) * self.layers

    @property
    def weight_bytes(self) -> float:
        """Of a stage: its layers and a share of the embedding and the output matrix."""
        s = self.shape
        linear_bytes = self.layers * self.layer_weights * dtype_bytes(self.linear_dtype)
        return linear_bytes + 2 * s.vocab * s.hidden / self.stages * dtype_bytes(s.dtype)

    def stage_s(self, tokens: Sequence[int], contexts: Sequence[int]) -> float:
        """Seconds that one stage takes for a batch: new tokens and total context of each request."""
        s = self.shape
        total = sum(tokens)
        # A new token attends to what was there and, within a chunk, to half of the chunk on average.
        attended = sum(n * (c - n / 2) for n, c in zip(tokens, contexts, strict=True))
        linear_flops = 2 * total * self.layers * self.layer_weights
        flops = 4 * attended * s.num_q_heads * s.head_dim * self.layers
        flops += 2 * len(tokens) * s.vocab * s.hidden / self.stages  # logits, of each request's last token
        nbytes = self.weight_bytes + self.kv_bytes_per_token * sum(contexts)
        compute_us = linear_flops / self.limits.flop_per_us(self.linear_dtype)
        compute_us += flops / self.limits.flop_per_us(s.dtype)
        busy_us = max(compute_us, nbytes / self.limits.memory_bytes_per_us)
        # Two all-reduces a layer; a ring passes 2 (n - 1) / n of the activations through each GPU.
        activations = total * s.hidden * dtype_bytes(s.dtype)
        traffic = 2 * self.layers * 2 * (s.tp - 1) / s.tp * activations
        return (busy_us + traffic / self.limits.nvlink_bytes_per_us) / 1e6


@dataclass(slots=True)
class Request:
    """A request in the model; times in seconds."""

    arrival_s: float
    prompt: int
    output: int
    computed: int = 0  # tokens in the KV cache
    in_flight: bool = False
    token_times_s: list[float] = field(default_factory=list)


def serve(
    machine: Machine, workload: Workload, *, kv_tokens: float, max_num_seqs: int, max_num_batched_tokens: int
) -> list[Request]:
    """Serve a workload; returns its requests with the time of each token.

    A batch passes the stages one after another, and the first stage takes the next batch as soon as it is
    free, of requests that are in no other.
    """
    requests = [
        Request(float(at), int(prompt), int(output))
        for at, prompt, output in zip(
            workload.arrival_s, workload.prompt_tokens, workload.output_tokens, strict=True
        )
    ]
    waiting, running = deque(requests), list[Request]()
    batches = deque[tuple[float, list[tuple[Request, int]]]]()  # in flight: end, requests and their tokens
    now_s = 0.0
    while waiting or running:
        while batches and batches[0][0] <= now_s:
            end_s, batch = batches.popleft()
            for request, tokens in batch:
                _advance(request, tokens, end_s)
            running = [request for request in running if len(request.token_times_s) < request.output]
        budget = max_num_batched_tokens
        batch = []
        for request in running:
            if not request.in_flight and budget:
                tokens = min(budget, max(1, request.prompt - request.computed))
                batch.append((request, tokens))
                budget -= tokens
        held = sum(request.prompt + request.output for request in running)
        while waiting and waiting[0].arrival_s <= now_s and budget and len(running) < max_num_seqs:
            if (held := held + waiting[0].prompt + waiting[0].output) > kv_tokens and running:
                break
            running.append(request := waiting.popleft())
            batch.append((request, min(budget, request.prompt)))
            budget -= batch[-1][1]
        if batch:
            counts = [tokens for _, tokens in batch]
            stage_s = machine.stage_s(counts, [request.computed + n for request, n in batch])
            for request, _ in batch:
                request.in_flight = True
            batches.append((now_s + machine.stages * stage_s, batch))
            now_s = now_s + stage_s
        else:  # nothing to do until a batch ends or a request arrives
            events = [batches[0][0]] if batches else []
            events += [waiting[0].arrival_s] if waiting and waiting[0].arrival_s > now_s else []
            now_s = min(events, default=now_s)
    return requests


def _advance(request: Request, tokens: int, end_s: float) -> None:
    request.in_flight = False
    request.computed += tokens
    if request.computed >= request.prompt:
        request.token_times_s.append(end_s)


def predict(case: Case) -> Prediction:
    """Metrics of a measured case by this model."""
    if case.workload.sharing is not None:
        return Prediction(skipped="this model has no prefix cache")
    content = case.description
    try:
        model = model_shape(content["model"])
    except Unsupported as reason:
        return Prediction(skipped=str(reason))
    tp, stages = int(content["tensor_parallel_size"]), int(content["pipeline_parallel_size"])
    shape, limits = RankShape.of(model, tp), load_limits(conf_dir() / "gpu", content["gpu"])
    linear_dtype = PRECISIONS[content["engine_args"].get("quantization", "bf16")]
    machine = Machine(shape, limits, stages, linear_dtype)
    memory = int(yaml.safe_load((conf_dir() / "gpu" / f"{content['gpu']}.yaml").read_text())["memory_bytes"])
    resolved = content["resolved"]
    free = memory * resolved["gpu_memory_utilization"] - machine.weight_bytes
    blocks = int(free // (machine.kv_bytes_per_token * resolved["block_size"]))
    requests = serve(
        machine,
        case.workload,
        kv_tokens=blocks * resolved["block_size"],
        max_num_seqs=int(resolved["max_num_seqs"]),
        max_num_batched_tokens=int(resolved["max_num_batched_tokens"]),
    )
    arrival_s = np.array([request.arrival_s for request in requests])
    table = {
        "arrival_s": arrival_s,
        "output_tokens": [request.output for request in requests],
        "ttft_s": np.array([request.token_times_s[0] for request in requests]) - arrival_s,
        "e2e_s": np.array([request.token_times_s[-1] for request in requests]) - arrival_s,
        "token_times_us": [(np.array(r.token_times_s) - r.arrival_s) * 1e6 for r in requests],
    }
    return Prediction(summarize(table, case.num_gpus) | {KV_METRIC: float(blocks)})


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", default=[validation_dir() / "runs"])
    parser.add_argument("--out", type=Path, default=validation_dir() / "predictions" / "roofline.csv")
    arguments = parser.parse_args(argv)
    cases = [case for case in read_cases(arguments.folders) if case.description["engine"] == "vllm"]
    write_csv({case.name: predict(case) for case in cases}, arguments.out)


if __name__ == "__main__":
    main()
