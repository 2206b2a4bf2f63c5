"""What vLLM's measurement of memory finds only when it starts for the first time on a machine."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import CompilationMode
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding


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

    def profile_first_run(*args: Any, **kwargs: Any) -> None:
        for table in tables if compiles else ():
            tokens = table.new_empty(outputs, runner.max_num_tokens, table.shape[1])
            tried = torch.empty_like(table), tokens
            del tokens, tried
        profile_run(*args, **kwargs)

    torch._C._cuda_clearCublasWorkspaces()
    runner.profile_run = profile_first_run
