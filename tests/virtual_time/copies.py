"""Copies of one process, priced by a test."""

from __future__ import annotations

import os
import subprocess
import sys

from revati.interception.gpu import load_gpu
from revati.interception.preload import emulated_environment

# Says when copies complete, in ns from `begin`; half as long again beside another stream's wait that crowds.
COPIES = """
import ctypes
from revati.interception.core import NativeCore
cuda, core = ctypes.CDLL("libcudart.so.13"), NativeCore()
watts = sensitivity = 0.0
def price(key, cost):
    cost.duration_ns, cost.crowded = key.bytes, 0.5
    cost.power_w, cost.clock_sensitivity = watts, sensitivity
core.set_resolver(price)
core.set_gaps(0, 0)
streams, memory = [ctypes.c_void_p() for _ in range(2)], ctypes.c_void_p()
for stream in streams:
    assert cuda.cudaStreamCreate(ctypes.byref(stream)) == 0
assert cuda.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(1 << 31)) == 0
half = ctypes.c_void_p(memory.value + (1 << 30))
def completion_ns(stream, ns=1_000_000):
    assert cuda.cudaMemcpyAsync(half, memory, ctypes.c_size_t(ns), 3, stream) == 0
    return core.stream_time(stream.value) - begin
begin = core.now_ns()
"""


def printed(program: str) -> list[int]:
    """The numbers that a program prints which goes on from `COPIES`."""
    environment = emulated_environment(load_gpu("h200"), 1, os.environ)
    ran = subprocess.run(
        [sys.executable, "-c", COPIES + program], env=environment, capture_output=True, text=True, check=True
    )
    return [int(word) for word in ran.stdout.split()]
