"""One process stands for all ranks of a tensor-parallel group.

The ranks of a tensor-parallel group run the same steps on slices of the same tensors.  So rank 0 runs
for real, with process groups that contain all ranks but exchange nothing, and collectives are priced for
the group's size.  Assumes that ranks are symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def fold_ranks(world_size: int) -> None:
    """Make this process's `torch.distributed` a group of ``world_size`` ranks of which only rank 0 runs."""
    import vllm.distributed.device_communicators.base_device_communicator as base_communicator
    import vllm.distributed.device_communicators.custom_all_reduce as custom_all_reduce
    import vllm.distributed.parallel_state as parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    new_group = dist.new_group

    def init_process_group(*_: Any, **__: Any) -> None:
        store = FakeStore()
        init(backend="fake", store=store, rank=0, world_size=world_size)

    def new_fake_group(ranks: Sequence[int] | None = None, *_: Any, **__: Any) -> Any:
        return new_group(ranks, backend="fake")

    def all_gather_object(objects: list[Any], mine: Any, group: Any = None) -> None:
        objects[:] = [mine] * len(objects)

    mine: list[Any] = []

    def broadcast_object_list(objects: list[Any], src: int | None = None, *_: Any, **__: Any) -> None:
        # Ranks broadcast in turn, rank 0 first; the others would have sent the like of what it sent.
        if src in (None, 0):
            mine[:] = objects
        else:
            objects[:] = mine

    def same_node(group: Any, source_rank: int = 0) -> list[bool]:
        return [True] * dist.get_world_size(group)

    init = dist.init_process_group
    dist.init_process_group = init_process_group
    dist.new_group = new_fake_group
    dist.all_gather_object = all_gather_object
    dist.broadcast_object_list = broadcast_object_list
    dist.barrier = lambda *_, **__: None
    torch.distributed.distributed_c10d.new_group = new_fake_group
    # Rank 0 writes to this queue and nobody reads it.
    MessageQueue.create_from_process_group = staticmethod(lambda *_, **__: None)
    for module in (parallel_state, custom_all_reduce, base_communicator):
        module.in_the_same_node_as = same_node
