"""Which of SGLang's interchangeable kernels run under emulation."""

from __future__ import annotations


def use_measured_norms() -> None:
    """Run sgl_kernel's own norms, the ones that were measured.

    On a host with FlashInfer, SGLang prefers its CuTe-DSL norms, whose runtime asks the driver for
    undocumented tables; they do the same work.
    """
    import sgl_kernel.elementwise

    sgl_kernel.elementwise._has_flashinfer = False
