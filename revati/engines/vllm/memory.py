"""How much memory vLLM would find for its KV cache under other limits than the engine was started with.

vLLM sizes the KV cache once, by running the model at its limits.  A process forked just before that moment
answers for any limits: it forks once more, sets them, and runs vLLM's own measurement, as on a machine where
vLLM has not compiled this model before: a start that finds it compiled leaves more memory.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import CompilationMode
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from revati.engines.base import InfeasibleError


@dataclass(frozen=True, slots=True)
class Limits:
    """The scheduler limits that a warmed engine can still change."""

    max_num_seqs: int
    max_num_batched_tokens: int


def run_as_for_the_first_time(runner: Any) -> None:
    """Let a model runner that has run before take as much memory in `profile_run` as it did then.

    cuBLAS allocated its workspaces.  Inductor compiled, and tried the embedding's kernel, in which the norm
    behind it is fused unless ranks sum up first, on tensors of its own; for large vocabularies that takes
    more than anything later (1.61 GiB of Qwen2.5 14B's on an H200, 0.90 GiB if it was compiled).
    """
    tables = [
        module.weight
        for module in runner.get_model().modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    ]
    compiles = runner.vllm_config.compilation_config.mode != CompilationMode.NONE
    outputs = 2 if runner.parallel_config.tensor_parallel_size == 1 else 1
    profile_run = runner.profile_run

    def profile_first_run() -> None:
        for table in tables if compiles else ():
            tokens = table.new_empty(outputs, runner.max_num_tokens, table.shape[1])
            tried = torch.empty_like(table), tokens
            del tokens, tried
        profile_run()

    torch._C._cuda_clearCublasWorkspaces()
    runner.profile_run = profile_first_run


class MemoryOracle:
    """Forks the calling process to answer `available_bytes` later.

    Args:
        measure: vLLM's measurement under given limits; runs in a process of its own each time.
    """

    def __init__(self, measure: Callable[[Limits], list[int]]) -> None:
        self._answers: dict[Limits, list[int]] = {}
        gc.collect()
        gc.freeze()  # else each answer's collections would copy the whole heap
        self._channel, theirs = socket.socketpair()
        if os.fork() == 0:
            self._channel.close()
            _serve(theirs, measure)
            os._exit(0)
        theirs.close()
        self._replies = self._channel.makefile("r")

    def available_bytes(self, limits: Limits) -> list[int]:
        """Bytes for the KV cache on each worker.

        Raises:
            InfeasibleError: the model does not run at these limits.
        """
        if limits not in self._answers:
            request = [limits.max_num_seqs, limits.max_num_batched_tokens]
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            reply = json.loads(self._replies.readline() or '{"error": "the memory measurement died"}')
            if "error" in reply:
                raise InfeasibleError(reply["error"])
            self._answers[limits] = reply["bytes"]
        return self._answers[limits]


def _serve(channel: socket.socket, measure: Callable[[Limits], list[int]]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # The channel closes with the process that asks, which ends this one.
    for line in channel.makefile("r"):
        limits = Limits(*json.loads(line))
        pid = os.fork()
        if pid == 0:
            try:
                reply: dict[str, object] = {"bytes": measure(limits)}
            except Exception as error:  # whatever it raises, vLLM does not run at these limits
                reply = {"error": f"{type(error).__name__}: {error}"}
            channel.sendall(json.dumps(reply).encode() + b"\n")
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            channel.sendall(b'{"error": "the memory measurement crashed"}\n')
