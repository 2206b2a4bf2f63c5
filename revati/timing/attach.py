"""Connects a `KernelTimer` to the launches that interception sees."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from revati.interception.core import Cost, LaunchKey, LaunchType, NativeCore, Work
from revati.interception.gpu import GpuDescription
from revati.timing.estimate import PROVENANCES, Estimate, dtype_bytes
from revati.timing.timer import KernelTimer

_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f8e4m3": "float8_e4m3", "s8": "int8"}
_FULL_CLOCK_TOKENS = 4096
_CUSTOM_ALL_REDUCE = {
    "cross_device_reduce_1stage": "custom_1stage",
    "cross_device_reduce_2stage": "custom_2stage",
}


class LaunchPricing:
    """Answers the native core's questions, and keeps count of where GPU time came from.

    Args:
        full_graphs: the engine replays decode steps as one CUDA graph.
    """

    def __init__(
        self, core: NativeCore, timer: KernelTimer, gpu: GpuDescription, full_graphs: bool = True
    ) -> None:
        self._core, self._timer, self._gpu, self._full_graphs = core, timer, gpu, full_graphs
        shape = timer.shape
        self._element_bytes = dtype_bytes(shape.dtype)
        self._hidden_bytes = shape.hidden * self._element_bytes
        self._kv_token_bytes = 2 * shape.num_kv_heads * shape.head_dim * self._element_bytes
        self._demangled: dict[bytes, str] = {}
        self.families: list[str] = []
        self.num_reqs = 0  # of the step in progress
        # Encloses predictions inside an engine's phase: their CPU time is ours, not the engine's.
        self.own_time: Callable[[], AbstractContextManager[None]] = nullcontext
        core.set_gaps(int(timer.launch_gap_us * 1e3), int(timer.graph_gap_us * 1e3), gpu.launch_queue_depth)
        power = gpu.power
        core.set_power_limit(power.limit_w, power.idle_w, power.exponent, int(power.time_constant_ms * 1e6))
        core.set_resolver(self._resolve)

    def set_batch(self, query_lens: Sequence[int], context_lens: Sequence[int]) -> None:
        """Announce the batch of the next step: new tokens and total context of each request."""
        self.num_reqs = len(query_lens)
        queries = np.asarray(query_lens, dtype=np.int64)
        contexts = np.asarray(context_lens, dtype=np.int64)
        main, combine = self._timer.attention(queries, contexts, self._full_graphs)
        shape = self._timer.shape
        flops = 4.0 * shape.num_q_heads * shape.head_dim * float(queries @ contexts)
        nbytes = self._kv_token_bytes * float(contexts.sum())
        power_w, sensitivity = self._gpu.power.attention(*self._shares(flops, nbytes, main.duration_us))
        self._core.set_attention(
            int(main.duration_us * 1e3),
            int(combine.duration_us * 1e3),
            PROVENANCES.index(main.provenance),
            self._family(main.kind),
            power_w,
            sensitivity,
        )

    def _shares(self, flops: float, nbytes: float, duration_us: float) -> tuple[float, float]:
        """Shares of the GPU's peak FLOP/s and bytes/s, at most 1."""
        flops_share = flops / (duration_us * self._gpu.bf16_tflops * 1e6)
        return min(1.0, flops_share), min(1.0, nbytes / (duration_us * self._gpu.memory_bandwidth_gb_s * 1e3))

    def shares(self) -> dict[str, float]:
        """Fraction of GPU busy time by provenance; all zero before anything ran."""
        times = self._core.gpu_time().ns_by_provenance[: len(PROVENANCES)]
        total = sum(times)
        return {name: (ns / total if total else 0.0) for name, ns in zip(PROVENANCES, times, strict=True)}

    def _family(self, kind: str) -> int:
        if kind not in self.families:
            self.families.append(kind)
        return self.families.index(kind)

    def _resolve(self, key: LaunchKey, cost: Cost) -> None:
        handlers: dict[int, Callable[[LaunchKey, Cost], Estimate]] = {
            LaunchType.KERNEL: self._kernel,
            LaunchType.GEMM: self._gemm,
            LaunchType.COLLECTIVE: self._collective,
            LaunchType.COPY: self._copy,
        }
        cost.power_w = self._gpu.power.other_w
        with self.own_time():
            estimate = handlers[key.type](key, cost)
        cost.duration_ns = int(estimate.duration_us * 1e3)
        cost.provenance = PROVENANCES.index(estimate.provenance)
        cost.family = self._family(estimate.kind)

    def _kernel(self, key: LaunchKey, cost: Cost) -> Estimate:
        name = self._demangle(key.name)
        part = self._timer.is_attention(name)
        if part:
            cost.work = Work.ATTENTION if part == "main" else Work.ATTENTION_COMBINE
            return Estimate(0.0, "measured", 0.0, "attention")  # priced per batch, see set_batch
        for kernel, implementation in _CUSTOM_ALL_REDUCE.items():
            if kernel in name:
                cost.per_tokens = cost.meets = 1
                nbytes = key.num_tokens * self._hidden_bytes
                return self._timer.collective("all_reduce", nbytes, self._timer.shape.tp, implementation)
        grid, block = tuple(key.grid), tuple(key.block)
        return self._timer.kernel(name, grid, block, key.shared_bytes, key.num_tokens, self.num_reqs)

    def _gemm(self, key: LaunchKey, cost: Cost) -> Estimate:
        types, _, operations = key.name.decode().partition(":")
        operand, _, result = types.partition(">")
        # Longer products met the power limit while they were measured; here the limit is modelled.
        tokens = min(key.m, _FULL_CLOCK_TOKENS)
        estimate = self._timer.gemm(
            tokens,
            key.n,
            key.k,
            _DTYPES.get(operand, operand),
            _DTYPES.get(result, result),
            operations[1:] == "T",  # cuBLAS's second operand is the row-major first
            operations[:1] == "T",
            key.batch,
        )
        if key.m > tokens:
            provenance = max(estimate.provenance, "interpolated", key=PROVENANCES.index)
            duration_us = estimate.duration_us * key.m / tokens
            estimate = Estimate(duration_us, provenance, estimate.rel_std, estimate.kind)
        flops = 2.0 * key.m * key.n * key.k * key.batch
        nbytes = self._element_bytes * key.batch * float(key.m * key.k + key.n * key.k + key.m * key.n)
        shares = self._shares(flops, nbytes, estimate.duration_us)
        cost.power_w, cost.clock_sensitivity = self._gpu.power.gemm(*shares)
        return estimate

    def _collective(self, key: LaunchKey, cost: Cost) -> Estimate:
        return self._timer.collective(key.name.decode(), key.bytes, key.ranks, "nccl")

    def _copy(self, key: LaunchKey, cost: Cost) -> Estimate:
        return self._timer.copy(key.name.decode(), key.bytes)

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
