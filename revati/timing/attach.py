"""Connects a `KernelTimer` to the launches that interception sees."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from revati.interception.core import Cost, LaunchKey, LaunchType, NativeCore, Work
from revati.timing.estimate import PROVENANCES, Estimate
from revati.timing.timer import KernelTimer

_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f8e4m3": "float8_e4m3", "s8": "int8"}
_CUSTOM_ALL_REDUCE = {
    "cross_device_reduce_1stage": "custom_1stage",
    "cross_device_reduce_2stage": "custom_2stage",
}


class LaunchPricing:
    """Answers the native core's questions, and keeps count of where GPU time came from.

    Args:
        hidden_bytes: bytes of one token's hidden state, to size custom all-reduces.
    """

    def __init__(
        self, core: NativeCore, timer: KernelTimer, hidden_bytes: int, launch_queue_depth: int
    ) -> None:
        self._core, self._timer, self._hidden_bytes = core, timer, hidden_bytes
        self._demangled: dict[bytes, str] = {}
        self.families: list[str] = []
        self.num_reqs = 0  # of the step in progress
        core.set_gaps(int(timer.launch_gap_us * 1e3), int(timer.graph_gap_us * 1e3), launch_queue_depth)
        core.set_resolver(self._resolve)

    def set_batch(self, query_lens: Sequence[int], context_lens: Sequence[int]) -> None:
        """Announce the batch of the next step: new tokens and total context of each request."""
        self.num_reqs = len(query_lens)
        main, combine = self._timer.attention(
            np.asarray(query_lens, dtype=np.int64), np.asarray(context_lens, dtype=np.int64)
        )
        self._core.set_attention(
            int(main.duration_us * 1e3),
            int(combine.duration_us * 1e3),
            PROVENANCES.index(main.provenance),
            self._family(main.kind),
        )

    def shares(self) -> dict[str, float]:
        """Fraction of GPU busy time by provenance; all zero before anything ran."""
        times = self._core.gpu_time().ns_by_provenance[: len(PROVENANCES)]
        total = sum(times)
        return {name: (ns / total if total else 0.0) for name, ns in zip(PROVENANCES, times, strict=True)}

    def family_shares(self) -> dict[str, float]:
        """Fraction of GPU busy time by kernel family."""
        times = self._core.gpu_time().ns_by_family[: len(self.families)]
        total = sum(times)
        return {name: (ns / total if total else 0.0) for name, ns in zip(self.families, times, strict=True)}

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
                cost.per_tokens = 1
                nbytes = key.num_tokens * self._hidden_bytes
                return self._timer.collective("all_reduce", nbytes, self._timer.shape.tp, implementation)
        grid, block = tuple(key.grid), tuple(key.block)
        return self._timer.kernel(name, grid, block, key.shared_bytes, key.num_tokens, self.num_reqs)

    def _gemm(self, key: LaunchKey, cost: Cost) -> Estimate:
        types, _, operations = key.name.decode().partition(":")
        operand, _, result = types.partition(">")
        return self._timer.gemm(
            key.m,
            key.n,
            key.k,
            _DTYPES.get(operand, operand),
            _DTYPES.get(result, result),
            operations[1:] == "T",  # cuBLAS's second operand is the row-major first
            operations[:1] == "T",
            key.batch,
        )

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
