"""One process stands for all ranks of a tensor-parallel group, and runs one worker per pipeline stage.

The ranks of a tensor-parallel group run the same steps on slices of the same tensors.  So the first rank
of each stage runs for real, with process groups that contain all ranks but exchange nothing, and collectives
are priced for the group's size.  Assumes that a group's ranks are symmetric.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


class FoldedRanks:
    """This process's `torch.distributed`: ``world_size`` ranks of which a few run here, one at a time.

    Args:
        message_queue: the engine's class of queues from rank 0 to the others; none is made.
        modules: the engine's modules that ask by ``in_the_same_node_as`` where ranks run.
    """

    def __init__(self, world_size: int, message_queue: Any, modules: Iterable[Any]) -> None:
        self._rank = 0  # that runs at present
        self._fold(world_size, message_queue, modules)

    @contextmanager
    def as_rank(self, rank: int) -> Iterator[None]:
        """Run the block as this rank, on its GPU."""
        self._rank, previous = rank, self._rank
        try:
            with torch.cuda.device(rank):
                yield
        finally:
            self._rank = previous

    def _fold(self, world_size: int, message_queue: Any, modules: Iterable[Any]) -> None:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        new_group, get_rank, init = dist.new_group, dist.get_rank, dist.init_process_group
        get_group_rank = dist.get_group_rank

        def init_process_group(*_: Any, **__: Any) -> None:
            init(backend="fake", store=FakeStore(), rank=0, world_size=world_size)

        def rank_here(group: Any = None) -> int:
            return self._rank if group is None else int(get_rank(group))

        def torch_rank(rank: int) -> int:
            # For torch this process is rank 0 for ever: the rank that runs changes places with it.
            return {self._rank: 0, 0: self._rank}.get(rank, rank)

        def new_fake_group(ranks: Sequence[int] | None = None, *_: Any, **__: Any) -> Any:
            return new_group([torch_rank(rank) for rank in ranks or range(world_size)], backend="fake")

        def group_rank(group: Any, rank: int) -> int:
            return int(get_group_rank(group, torch_rank(rank)))

        def all_gather_object(objects: list[Any], mine: Any, group: Any = None) -> None:
            objects[:] = [mine] * len(objects)

        mine: list[Any] = []

        def broadcast_object_list(objects: list[Any], src: int | None = None, *_: Any, **__: Any) -> None:
            # Ranks broadcast in turn, the running one first; the others would have sent the like of its own.
            if src in (None, self._rank):
                mine[:] = objects
            else:
                objects[:] = mine

        def same_node(group: Any, source_rank: int = 0) -> list[bool]:
            return [True] * dist.get_world_size(group)

        dist.init_process_group = init_process_group
        dist.get_rank = rank_here
        dist.get_group_rank = group_rank
        dist.new_group = new_fake_group
        dist.all_gather_object = all_gather_object
        dist.broadcast_object_list = broadcast_object_list
        dist.barrier = lambda *_, **__: None
        dist.monitored_barrier = lambda *_, **__: None
        torch.distributed.distributed_c10d.new_group = new_fake_group
        # Rank 0 writes to this queue and nobody reads it.
        message_queue.create_from_process_group = staticmethod(lambda *_, **__: None)
        for module in modules:
            module.in_the_same_node_as = same_node
