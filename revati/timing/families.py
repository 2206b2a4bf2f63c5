"""Which family a kernel's name belongs to: one table, read top to bottom, first match wins.

Names are demangled for CUDA C++ and function names for Triton. Inductor numbers its kernels
(``triton_red_fused_add_rms_norm_2``); the number tells the place in the graph, not the work.
"""

from __future__ import annotations

import re

# FlashAttention 3, FlashAttention 2 (before Hopper) and vLLM's Triton kernels.
ATTENTION_MAIN = re.compile(
    r"flash::FlashAttnFwdSm\d+|flash::flash_fwd_(splitkv_)?kernel|kernel_unified_attention"
)
ATTENTION_COMBINE = re.compile(
    r"flash::FlashAttnFwdCombine|flash::flash_fwd_splitkv_combine_kernel|^reduce_segments"
)

# (pattern, kind); kinds as in schema.KINDS.
FAMILIES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (ATTENTION_COMBINE.pattern, "combine"),
        (ATTENTION_MAIN.pattern, "attention"),
        (r"flash::prepare_varlen_num_blocks", "attention_schedule"),
        (r"nvjet_|splitKreduce_kernel|gemv|marlin::|cutlass.*[Gg]emm|sm\d+_xmma_gemm", "gemm"),
        (r"triton_\w*scaled_mm|scaled_fp8_quant", "quant"),  # a norm or an activation may be fused in
        (r"cross_device_reduce|ncclDevKernel|ncclKernel", "collective"),
        (r"reshape_and_cache", "kv_write"),
        (r"rotary_embedding|triton_poi_.*_cat_.*(split|index_select)", "rope"),
        (r"triton_.*embedding", "embedding"),
        (r"rms_norm|layer_norm|triton_(red|per)_.*(mean|rsqrt)", "norm"),
        (r"act_and_mul|silu|gelu", "activation"),
        (r"_gumbel_sample|_temperature|_min_p|_penalties|_bad_words|_topk_log|_ranks_kernel", "sampling"),
        (r"ArgMaxOps|_post_update|_get_num_sampled|_combine_sampled", "sampling"),
        (r"_prepare_|_gather_block_tables|_compute_slot_mappings|_apply_write", "input"),
    )
)

_NUMBER = re.compile(r"_\d+$")


def family(name: str) -> str:
    for pattern, kind in FAMILIES:
        if pattern.search(name):
            return kind
    return "elementwise"


def without_number(name: str) -> str:
    """A Triton name without Inductor's running number; a C++ name without return type, parameters, spaces."""
    if "(" in name or "<" in name:
        return _cut_parameters(name.removeprefix("void ")).replace(" ", "")
    return _NUMBER.sub("", name)


def _cut_parameters(name: str) -> str:
    """``f<int, (A)0>(int, B)`` → ``f<int, (A)0>``."""
    depth = 0
    for i, char in enumerate(name):
        if char == "<":
            depth += 1
        elif char == ">":
            depth -= 1
        elif char == "(" and depth == 0 and not name.startswith("(anonymous", i):
            return name[:i]
    return name
