"""Gives a warmed vLLM engine the limits of a trial, so that it runs like one started with them.

What depends on the limits: KV-cache size, CUDA-graph sizes and their dispatch, and everything that the
scheduler derives; the latter is rebuilt by vLLM's own constructor.  The graphs of the wider engine contain
those of the narrower one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

from revati.engines.vllm.memory import Limits

if TYPE_CHECKING:
    from revati.engines.vllm.executor import EmulatedExecutor
    from revati.engines.vllm.replica import VllmReplica


def set_configured_limits(config: Any, limits: Limits) -> None:
    """Set what the scheduler is built from."""
    config.scheduler_config.max_num_seqs = limits.max_num_seqs
    config.scheduler_config.max_num_batched_tokens = limits.max_num_batched_tokens
    config.scheduler_config.max_num_scheduled_tokens = limits.max_num_batched_tokens


def set_profiled_limits(runner: Any, limits: Limits) -> None:
    """Set what the memory measurement runs the model at; the runner's buffers are made for more."""
    runner.max_num_reqs = limits.max_num_seqs
    runner.max_num_tokens = limits.max_num_batched_tokens


class _MeasuredExecutor:
    """An executor whose workers have KV caches and graphs already, for vLLM to size its cache once more."""

    def __init__(self, executor: EmulatedExecutor, available_bytes: list[int]) -> None:
        self._executor, self._available_bytes = executor, available_bytes

    def determine_available_memory(self) -> list[int]:
        return self._available_bytes

    def initialize_from_config(self, kv_cache_configs: Any) -> None:
        return

    def compile_or_warm_up_model(self) -> None:
        return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)


def apply_limits(replica: VllmReplica, limits: Limits) -> None:
    """Make ``replica`` run with ``limits``.

    Raises:
        InfeasibleError: the limits leave no memory for the KV cache.
    """
    available_bytes = replica.executor.memory.available_bytes(limits)
    core, config = replica.core, replica.config
    set_configured_limits(config, limits)
    for stage in replica.executor.stages:
        set_configured_limits(stage.config, limits)
        _narrow_graphs(stage.config, stage.runner, limits)
    executor, core.model_executor = core.model_executor, _MeasuredExecutor(replica.executor, available_bytes)
    try:
        kv_cache_config = core._initialize_kv_caches(config)
    finally:
        core.model_executor = executor
    block_size, hash_block_size = resolve_kv_cache_block_sizes(kv_cache_config, config)
    core.scheduler = config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=kv_cache_config,
        structured_output_manager=core.structured_output_manager,
        include_finished_set=False,
        log_stats=core.log_stats,
        block_size=block_size,
        hash_block_size=hash_block_size,
    )
    replica.charge_scheduler()


def _narrow_graphs(config: Any, runner: Any, limits: Limits) -> None:
    compilation, manager = config.compilation_config, runner.cudagraph_manager
    if not manager.needs_capture():
        return
    compilation.max_cudagraph_capture_size = None
    compilation.cudagraph_capture_sizes = None
    config._set_cudagraph_sizes()
    manager.max_num_reqs = limits.max_num_seqs
    manager._candidates.clear()
    manager._capture_descs.clear()
    manager._init_candidates()
