"""Binding to the native core: the virtual clock and the price list of launches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from revati.interception.preload import CORE_LIBRARY


class Work(IntEnum):
    """Which duration a launch has: its own, or that of the current batch's attention."""

    FIXED = 0
    ATTENTION = 1
    ATTENTION_COMBINE = 2


class LaunchType(IntEnum):
    KERNEL = 0
    GEMM = 1
    COLLECTIVE = 2
    COPY = 3


class LaunchKey(ctypes.Structure):
    """What interception sees of a launch (``revati::LaunchKey``)."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int32),
        ("grid", ctypes.c_int32 * 3),
        ("block", ctypes.c_int32 * 3),
        ("shared_bytes", ctypes.c_int64),
        ("m", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("ranks", ctypes.c_int32),
        ("num_tokens", ctypes.c_int32),
    ]


class Cost(ctypes.Structure):
    """A resolver's answer (``revati::Cost``)."""

    _fields_ = [
        ("duration_ns", ctypes.c_int64),
        ("work", ctypes.c_int32),
        ("launch", ctypes.c_int32),
        ("per_tokens", ctypes.c_int32),
        ("power_w", ctypes.c_float),
        ("clock_sensitivity", ctypes.c_float),
        ("meets", ctypes.c_int32),
        ("launches", ctypes.c_int32),
        ("ranks", ctypes.c_int32),
        ("std_ns", ctypes.c_float),
        ("crowds", ctypes.c_int32),
        ("crowded", ctypes.c_float),
    ]


_Resolver = ctypes.CFUNCTYPE(None, ctypes.POINTER(LaunchKey), ctypes.POINTER(Cost))


@dataclass(frozen=True, slots=True)
class GpuTime:
    """GPU time and number of launches since the last reset, by index of distinct launch."""

    busy_ns: list[int]
    launches: list[int]


class NativeCore:
    """The process's one native core; the stand-ins of this process share its state.

    Raises:
        RuntimeError: when the process was not started with the stand-ins preloaded.
    """

    def __init__(self) -> None:
        self._lib = lib = ctypes.CDLL(str(CORE_LIBRARY))
        if not hasattr(ctypes.CDLL(None), "revati_clock_now"):
            raise RuntimeError("the native stand-ins are not preloaded into this process")
        lib.revati_clock_now.restype = ctypes.c_int64
        for name in ("clock_set", "clock_wait_until", "clock_advance", "phase_end"):
            getattr(lib, f"revati_{name}").argtypes = [ctypes.c_int64]
        lib.revati_phase_begin.argtypes = [ctypes.c_int, ctypes.c_int64]
        lib.revati_set_gaps.argtypes = [ctypes.c_int64, ctypes.c_int64]
        lib.revati_set_queue.argtypes = [ctypes.c_int, ctypes.c_int]
        lib.revati_set_attention.argtypes = [ctypes.c_int64] * 2 + [ctypes.c_int] * 2 + [ctypes.c_float] * 4
        lib.revati_stream_time.argtypes, lib.revati_stream_time.restype = [ctypes.c_void_p], ctypes.c_int64
        for name in ("stream_wait", "stream_crowd"):
            getattr(lib, f"revati_{name}").argtypes = [ctypes.c_void_p, ctypes.c_int64]
        limit = (ctypes.c_double, ctypes.c_int64)
        lib.revati_set_power_limits.argtypes = (*limit, *limit, ctypes.c_double, ctypes.c_double)
        lib.revati_set_all_reduce_group.argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.c_int]
        self._resolver: object = None
        self.now_ns: Callable[[], int] = lib.revati_clock_now
        self.set_ns: Callable[[int], None] = lib.revati_clock_set
        self.wait_until_ns: Callable[[int], None] = lib.revati_clock_wait_until
        self.advance_ns: Callable[[int], None] = lib.revati_clock_advance
        self.phase_begin: Callable[[int, int], None] = lib.revati_phase_begin
        self.phase_end: Callable[[int], None] = lib.revati_phase_end
        # Of a CUDA stream, by its handle: when all that was submitted is complete; wait for a moment [ns].
        self.stream_time: Callable[[int], int] = lib.revati_stream_time
        self.stream_wait: Callable[[int, int], None] = lib.revati_stream_wait
        # Waits by a kernel, beside which those of other streams take longer (`Cost.crowded`).
        self.stream_crowd: Callable[[int, int], None] = lib.revati_stream_crowd
        self.set_attention: Callable[[int, int, int, int, float, float, float, float], None] = (
            lib.revati_set_attention
        )
        self.set_power_limits: Callable[[float, int, float, int, float, float], None] = (
            lib.revati_set_power_limits
        )
        self.set_gaps: Callable[[int, int], None] = lib.revati_set_gaps
        self.set_queue: Callable[[int, int], None] = lib.revati_set_queue
        # Device and pinned memory: whether getting more of it waits for the GPU, as it really does.
        self.set_allocations_wait: Callable[[bool], None] = lib.revati_set_allocations_wait
        # Launches are counted from here on, by GPUs that have been idle for long.
        self.begin_measurement: Callable[[], None] = lib.revati_begin_measurement

    def configure(self, environment: str) -> None:
        """See these GPUs from now on (`GpuDescription.to_environment`); before anything asks for one."""
        self._lib.revati_configure(environment.encode())

    def set_resolver(self, resolve: Callable[[LaunchKey, Cost], None]) -> None:
        """Ask ``resolve`` once per distinct launch; it fills the cost in place."""
        callback = _Resolver(lambda key, cost: resolve(key.contents, cost.contents))
        self._resolver = callback  # the native side keeps no reference
        self._lib.revati_set_resolver(callback)

    def set_all_reduce_group(self, group: int, rank: int, ranks: int) -> None:
        """Name the ranks of the custom all-reduce, whose kernels carry no communicator.

        Args:
            group: the same number in all of the group's processes, and in no other group's.
        """
        self._lib.revati_set_all_reduce_group(group, rank, ranks)

    def show_virtual_time(self, enable: bool) -> None:
        """Let the clocks that this thread reads show virtual time, going on from the present."""
        self._lib.revati_clocks_virtual(int(enable))

    def gpu_time(self, size: int) -> GpuTime:
        """Of the first ``size`` distinct launches (see ``Cost.launch``)."""
        times, launches = (ctypes.c_int64 * size)(), (ctypes.c_int64 * size)()
        self._lib.revati_gpu_time(times, launches, size)
        return GpuTime(list(times), list(launches))
