"""SGLang's ranks in one process, see `revati.engines.fold`."""

from __future__ import annotations

from collections.abc import Callable

import torch

import revati.engines.fold
from revati.interception.preload import CUDA_RUNTIME


class FoldedRanks(revati.engines.fold.FoldedRanks):
    """SGLang's ``world_size`` ranks, of which a few run here."""

    def __init__(self, world_size: int) -> None:
        import sglang.srt.distributed.device_communicators.custom_all_reduce_utils as custom_all_reduce
        import sglang.srt.distributed.parallel_state as parallel_state
        from sglang.srt.distributed.device_communicators.shm_broadcast import MessageQueue

        super().__init__(world_size, MessageQueue, (parallel_state, custom_all_reduce))
        use_emulated_cuda_runtime()
        # PyTorch counted the GPUs while the engines were imported, before there were this many.
        torch.cuda.can_device_access_peer = lambda *_: True


def use_emulated_cuda_runtime() -> None:
    """Let SGLang's own all-reduce allocate its buffers on the emulated GPU.

    It opens the first libcudart that the process has mapped by its path, and torchvision and sgl_kernel bring
    real ones along.
    """
    import sglang.srt.distributed.device_communicators.cuda_wrapper as cuda_wrapper

    find: Callable[[str], str | None] = cuda_wrapper.find_loaded_library

    def find_loaded_library(name: str) -> str | None:
        return str(CUDA_RUNTIME) if name == "libcudart" else find(name)

    cuda_wrapper.find_loaded_library = find_loaded_library
