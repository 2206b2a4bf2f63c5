"""Start-up work that changes nothing of what a dense model runs later, left out to start sooner.

Measured on two cores: 10 to 20 s for router GEMMs that only mixture-of-experts models launch, 30 s for
Inductor's pattern matcher, which a later compilation would need and steady serving never does, 10 s for
importing TileLang only to watch it for compilations, 15 s for a process that looks at a model's class, since
that might initialise CUDA: no harm is done here.
"""

from __future__ import annotations


def skip_irrelevant_warmups() -> None:
    import vllm.compilation.compiler_interface as compiler_interface
    import vllm.model_executor.models.registry as registry
    import vllm.model_executor.warmup.kernel_warmup as kernel_warmup
    import vllm.utils.jit_monitor as jit_monitor

    kernel_warmup._warmup_ll_bf16_router_gemm = lambda model=None: None
    compiler_interface.trigger_inductor_lazy_init = lambda device=None: None
    jit_monitor._setup_tilelang_jit_hook = lambda: None
    registry._run_in_subprocess = lambda inspect: inspect()
