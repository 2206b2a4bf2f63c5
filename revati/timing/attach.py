"""Connects a timing source to the launches that interception sees."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from revati.interception.core import Cost, LaunchKey, LaunchType, NativeCore, Work
from revati.interception.gpu import GpuDescription
from revati.timing.estimate import AttentionUse, Estimate, dtype_bytes
from revati.timing.families import family
from revati.timing.power import demand
from revati.timing.sharing import Beginnings
from revati.timing.source import TimingSource
from revati.timing.usage import LaunchLog, Usage

_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f8e4m3": "float8_e4m3", "s8": "int8"}
_CUSTOM_ALL_REDUCE = re.compile(r"(vllm|sglang)::cross_device_reduce_([12]stage)")
# What `TimingSource.collective` calls them.
_CUSTOM_PREFIX = {"vllm": "custom", "sglang": "sglang_custom"}

BY_BATCH = "by batch"  # what tells an attention kernel's launches apart


class UnreadProductError(ValueError):
    """A product came as a kernel whose launch doesn't tell its size, so that nothing tells its time."""


class LaunchPricing:
    """Answers the native core's questions, once per distinct launch, and knows which ones ran.

    Args:
        attention: what the engine asks of FlashAttention.
    """

    def __init__(
        self,
        core: NativeCore,
        source: TimingSource,
        gpu: GpuDescription,
        attention: AttentionUse = "graph",
    ) -> None:
        self._core, self._source, self._gpu, self._attention = core, source, gpu, attention
        self._hidden_bytes = source.shape.hidden * dtype_bytes(source.shape.dtype)
        self._demangled: dict[bytes, str] = {}
        self._attention_names = {"main": "attention", "combine": "combine"}
        self._log = LaunchLog()
        self._unread: str | None = None  # a product's kernel
        self.num_reqs = 0  # of the step in progress
        # Encloses predictions inside an engine's phase: their CPU time is ours, not the engine's.
        self.own_time: Callable[[], AbstractContextManager[None]] = nullcontext
        core.set_gaps(round(source.launch_gap_us * 1e3), round(source.graph_gap_us * 1e3))
        core.set_queue(gpu.launch_queue_depth, gpu.graph_collective_limit)
        if (power := gpu.power) is None:
            core.set_power_limits(0.0, 1, 0.0, 1, 0.0, 1.0)
        else:
            core.set_power_limits(
                power.peak_limit_w,
                int(power.peak_time_constant_ms * 1e6),
                power.limit_w,
                int(power.time_constant_ms * 1e6),
                power.idle_w,
                power.exponent,
            )
        core.set_resolver(self._resolve)

    def set_batch(
        self,
        query_lens: Sequence[int],
        context_lens: Sequence[int],
        beginnings: Beginnings | None = None,
    ) -> None:
        """Announce the batch of the next step: new tokens and total context of each request.

        Args:
            beginnings: of the contexts, where any begin alike.

        Raises:
            UnreadProductError: see `refuse_unread`.
        """
        self.refuse_unread()
        self.num_reqs = len(query_lens)
        queries = np.asarray(query_lens, dtype=np.int64)
        contexts = np.asarray(context_lens, dtype=np.int64)
        main, combine = self._source.attention(queries, contexts, self._attention, beginnings)
        power_w, sensitivity = demand(self._gpu, main)
        self._core.set_attention(
            round(main.duration_us * 1e3),
            round(combine.duration_us * 1e3),
            self._log.add(self._attention_names["main"], BY_BATCH, main),
            self._log.add(self._attention_names["combine"], BY_BATCH, combine),
            power_w,
            sensitivity,
            main.std_us * 1e3,
            combine.std_us * 1e3,
        )

    def refuse_unread(self) -> None:
        """
        Raises:
            UnreadProductError: a product was launched whose time is not known; names it.
        """
        if self._unread is not None:
            raise UnreadProductError(
                f"{self._gpu.name}: nothing tells how long the product {self._unread} takes; known: "
                "cuBLAS's, and of vLLM's CUTLASS kernels those with FP8 weights and activations"
            )

    def usage(self) -> Usage:
        """The launches since the core's counters were reset."""
        counted = self._core.gpu_time(len(self._log.launches))
        return self._log.usage(counted.busy_ns, counted.launches)

    def _resolve(self, key: LaunchKey, cost: Cost) -> None:
        handlers: dict[int, Callable[[LaunchKey, Cost], tuple[str, str, Estimate] | None]] = {
            LaunchType.KERNEL: self._kernel,
            LaunchType.GEMM: self._gemm,
            LaunchType.COLLECTIVE: self._collective,
            LaunchType.COPY: self._copy,
        }
        with self.own_time():
            answer = handlers[key.type](key, cost)
        if answer is None:
            cost.launch = -1
            return
        name, shape, estimate = answer
        cost.duration_ns = round(estimate.duration_us * 1e3)
        cost.launches = estimate.launches
        cost.std_ns = estimate.std_us * 1e3
        cost.crowded = estimate.crowded - 1.0
        cost.power_w, cost.clock_sensitivity = demand(self._gpu, estimate)
        cost.launch = self._log.add(name, shape, estimate)

    def _kernel(self, key: LaunchKey, cost: Cost) -> tuple[str, str, Estimate] | None:
        name = self._demangle(key.name)
        part = self._source.is_attention(name)
        if part:  # priced per batch, see set_batch
            cost.work = Work.ATTENTION if part == "main" else Work.ATTENTION_COMBINE
            self._attention_names[part] = name
            return None
        if found := _CUSTOM_ALL_REDUCE.search(name):
            cost.per_tokens = cost.meets = 1
            nbytes, ranks = key.num_tokens * self._hidden_bytes, self._source.shape.tp
            cost.ranks = ranks
            impl = f"{_CUSTOM_PREFIX[found[1]]}_{found[2]}"
            estimate = self._source.collective("all_reduce", nbytes, ranks, impl)
            return name, f"{nbytes} bytes, {ranks} ranks", estimate
        if family(name) == "gemm":  # an error here would be lost in the native core
            self._unread = name.removeprefix("void ")[:120]
        grid, block = tuple(key.grid), tuple(key.block)
        estimate = self._source.kernel(name, grid, block, key.shared_bytes, key.num_tokens, self.num_reqs)
        return name, f"grid {grid}, block {block}, {key.shared_bytes} bytes shared", estimate

    def _gemm(self, key: LaunchKey, cost: Cost) -> tuple[str, str, Estimate]:
        name = key.name.decode()
        types, _, operations = name.partition(":")
        operand, _, result = types.partition(">")
        estimate = self._source.gemm(
            key.m,
            key.n,
            key.k,
            _DTYPES.get(operand, operand),
            _DTYPES.get(result, result),
            operations[1:] == "T",  # cuBLAS's second operand is the row-major first
            operations[:1] == "T",
            key.batch,
        )
        return f"gemm {name}", f"m={key.m}, n={key.n}, k={key.k}, batch={key.batch}", estimate

    def transfer_ns(self, nbytes: int) -> int:
        """Duration of sending so many bytes from one GPU to another."""
        with self.own_time():
            return round(self._source.collective("send_recv", nbytes, 2, "nccl").duration_us * 1e3)

    def _collective(self, key: LaunchKey, cost: Cost) -> tuple[str, str, Estimate]:
        name = key.name.decode()
        cost.ranks = key.ranks
        cost.crowds = name == "broadcast"  # nobody measured what others do
        estimate = self._source.collective(name, key.bytes, key.ranks, "nccl")
        return f"nccl {name}", f"{key.bytes} bytes, {key.ranks} ranks", estimate

    def _copy(self, key: LaunchKey, cost: Cost) -> tuple[str, str, Estimate]:
        name = key.name.decode()
        return f"copy {name}", f"{key.bytes} bytes", self._source.copy(name, key.bytes)

    def _demangle(self, name: bytes) -> str:
        if name not in self._demangled:
            self._demangled[name] = _demangle(name.decode()) if name.startswith(b"_Z") else name.decode()
        return self._demangled[name]


def _demangle(name: str) -> str:
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    text = demangle(name.encode(), None, None, ctypes.byref(status))
    if status.value != 0 or not text:
        return name
    result = ctypes.string_at(text).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(text))
    return result
