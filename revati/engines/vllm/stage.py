"""The worker of one pipeline stage, with what vLLM keeps in global variables of a worker's process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Lock
from types import ModuleType
from typing import Any

import torch
import vllm.distributed.parallel_state as parallel_state
import vllm.model_executor.layers.rotary_embedding as rotary_embedding
import vllm.utils.torch_utils as torch_utils
import vllm.v1.worker.workspace as workspace
from vllm.v1.serial_utils import run_method
from vllm.v1.worker.worker_base import WorkerWrapperBase

from revati.engines.vllm.fold import FoldedRanks
from revati.interception.core import NativeCore
from revati.virtual_time.cores import VirtualCore


def _nothing() -> None:
    return None


# What a worker's process sets once and then finds again, and what a new process finds there.
_GLOBALS: tuple[tuple[ModuleType | Any, str, Callable[[], Any]], ...] = (
    *((parallel_state, name, _nothing) for name in parallel_state.__annotations__ if name.isupper()),
    (workspace, "_manager", _nothing),
    (torch_utils._current_stream_tls, "value", _nothing),
    (torch.cuda.graph, "default_capture_stream", _nothing),
    # Rotary embeddings keep a table on their worker's GPU: another stage would copy it in every layer, and
    # so wait for that GPU.
    (rotary_embedding, "_ROPE_DICT", dict),
)


class Stage:
    """The first tensor-parallel rank of a pipeline stage.

    ``process`` is the virtual core of the worker's process (unused if that is the engine core's),
    ``output_thread`` that of its thread which waits for the GPU and sends outputs.
    """

    def __init__(self, index: int, vllm_config: Any, ranks: FoldedRanks, native: NativeCore) -> None:
        parallel = vllm_config.parallel_config
        self.rank: int = index * parallel.tensor_parallel_size
        self.process = VirtualCore(native, f"worker_{index}")
        self.output_thread = VirtualCore(native, f"worker_{index}_output")
        self._ranks = ranks
        self._globals: dict[int, Any] = {}
        self._alone = parallel.pipeline_parallel_size == 1
        # A worker's process has a configuration of its own; alone, it is the engine core's process.
        self.config = vllm_config if parallel.world_size == 1 else copy.deepcopy(vllm_config)

    def start(self, distributed_init_method: str) -> None:
        with self.running():
            self._wrapper = WorkerWrapperBase(global_rank=self.rank)
            self._wrapper.init_worker(all_kwargs=[self._arguments(distributed_init_method)])
            self._wrapper.init_device()
            self._wrapper.load_model()

    @property
    def worker(self) -> Any:
        return self._wrapper.worker

    @property
    def runner(self) -> Any:
        return self._wrapper.worker.model_runner

    def call(self, method: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.running():
            return run_method(self._wrapper, method, args, kwargs)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be this stage's process."""
        if self._alone:
            yield
            return
        outside = _exchange(self._globals)
        try:
            with self._ranks.as_rank(self.rank):
                yield
        finally:
            self._globals = _exchange(outside)

    def _arguments(self, distributed_init_method: str) -> dict[str, Any]:
        return {
            "vllm_config": self.config,
            "local_rank": self.rank,
            "rank": self.rank,
            "distributed_init_method": distributed_init_method,
            "is_driver_worker": True,
            "shared_worker_lock": Lock(),
        }


def _exchange(values: dict[int, Any]) -> dict[int, Any]:
    """Set the global variables, as in a new process where there is no value; returns those that they had."""
    before = {i: getattr(holder, name, None) for i, (holder, name, _) in enumerate(_GLOBALS)}
    for i, (holder, name, new) in enumerate(_GLOBALS):
        setattr(holder, name, values[i] if i in values else new())
    return before
