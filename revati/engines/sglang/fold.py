"""SGLang's ranks in one process, see `revati.engines.fold`."""

from __future__ import annotations

import torch

import revati.engines.fold


class FoldedRanks(revati.engines.fold.FoldedRanks):
    """SGLang's ``world_size`` ranks, of which a few run here."""

    def __init__(self, world_size: int) -> None:
        import sglang.srt.distributed.device_communicators.custom_all_reduce_utils as custom_all_reduce
        import sglang.srt.distributed.parallel_state as parallel_state
        from sglang.srt.distributed.device_communicators.shm_broadcast import MessageQueue

        super().__init__(world_size, MessageQueue, (parallel_state, custom_all_reduce))
        # PyTorch counted the GPUs while the engines were imported, before there were this many.
        torch.cuda.can_device_access_peer = lambda *_: True
