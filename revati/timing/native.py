"""Binding to ``librevati_timing.so``: what the timing asks in every engine step (``native/timing/``)."""

from __future__ import annotations

import ctypes

from revati.interception.preload import TIMING_LIBRARY

NUM_FEATURES = 22  # of attention
MOST_SETS = 2  # of trees: the main and the combine kernel's
MOST_FEATURES = 32  # of a forest


class Device(ctypes.Structure):
    """One rank's heads, and the GPU's limits."""

    _fields_ = [
        ("num_q", ctypes.c_int64),
        ("num_kv", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("sm_count", ctypes.c_int64),
        ("memory_bytes_per_us", ctypes.c_double),
        ("bf16_flop_per_us", ctypes.c_double),
        ("launch_us", ctypes.c_double),
    ]


class Batch(ctypes.Structure):
    """A batch's sums; with tokens in it, also its features and the durations that a forest tells from them.

    ``context_tokens`` and ``max_context`` include the query tokens; ``pairs`` are query tokens times the
    context of their request, without a causal mask.
    """

    query_tokens: int
    context_tokens: int
    max_context: int
    pairs: int
    features: ctypes.Array[ctypes.c_double]
    durations_us: ctypes.Array[ctypes.c_double]
    _fields_ = [
        ("query_tokens", ctypes.c_int64),
        ("context_tokens", ctypes.c_int64),
        ("max_context", ctypes.c_int64),
        ("pairs", ctypes.c_int64),
        ("features", ctypes.c_double * NUM_FEATURES),
        ("durations_us", ctypes.c_double * MOST_SETS),
    ]


class ForestTables(ctypes.Structure):
    """Addresses of a forest's arrays; see `revati.timing.forest`."""

    _fields_ = [
        ("features", ctypes.c_int64),
        ("trees", ctypes.c_int64),
        ("sets", ctypes.c_int64),
        ("thresholds", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("masks", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("set_ends", ctypes.c_void_p),
        ("bases", ctypes.c_void_p),
    ]


# It keeps the interpreter's lock: its calls take microseconds.
library = ctypes.PyDLL(str(TIMING_LIBRARY))
library.revati_forest_predict.argtypes = [ctypes.POINTER(ForestTables), ctypes.c_void_p, ctypes.c_void_p]
library.revati_forest_predict.restype = None
# Addresses of a Device, ForestTables (or None), query and context lengths; requests, graph_tokens; a Batch's.
library.revati_describe_batch.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 2 + [ctypes.c_void_p]
library.revati_describe_batch.restype = None
