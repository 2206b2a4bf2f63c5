"""vLLM's ranks in one process, see `revati.engines.fold`."""

from __future__ import annotations

import revati.engines.fold


class FoldedRanks(revati.engines.fold.FoldedRanks):
    """vLLM's ``world_size`` ranks, of which a few run here."""

    def __init__(self, world_size: int) -> None:
        import vllm.distributed.device_communicators.base_device_communicator as base_communicator
        import vllm.distributed.device_communicators.custom_all_reduce as custom_all_reduce
        import vllm.distributed.parallel_state as parallel_state
        from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

        super().__init__(world_size, MessageQueue, (parallel_state, custom_all_reduce, base_communicator))
