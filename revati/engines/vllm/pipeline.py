"""What pipeline stages hand to each other: hidden states down the pipeline, sampled tokens back up.

The stages of a step run one after the other in this process, each on its own virtual core and GPU.  Here
their messages meet: a transfer begins when both ends have come to it and ends for both at the same time.
Before it, their hosts meet: the shapes come by a message that Gloo takes from the sender when asked for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.parallel_state import GroupCoordinator

from revati.interception.core import NativeCore

TransferTime = Callable[[int], int]  # bytes -> ns
HandOverTime = Callable[[], int]  # ns that both hosts need once they have met


@dataclass(slots=True)
class Transfer:
    """One step's tensors on their way to the next stage; times in ns."""

    tensors: dict[str, Any]
    sent_ns: int  # by the sender's host
    ready_ns: int  # on the sender's GPU
    done_ns: int = 0


@dataclass(frozen=True, slots=True)
class Handle:
    """What vLLM waits for: the current stream goes on once the transfer is done."""

    native: NativeCore
    transfer: Transfer

    def wait(self) -> None:
        self.native.stream_wait(torch.cuda.current_stream().cuda_stream, self.transfer.done_ns)


class Pipeline:
    """Stands in for the communication between stages.

    Args:
        transfer_ns: duration of a transfer between two GPUs by its bytes.
        hand_over_ns: what handing over the step in progress takes two workers' processes.
    """

    def __init__(self, native: NativeCore, transfer_ns: TransferTime, hand_over_ns: HandOverTime) -> None:
        self._native, self._transfer_ns, self._hand_over_ns = native, transfer_ns, hand_over_ns
        self._queues: dict[int, deque[Transfer]] = {}  # by the sender's rank
        self._handed_over_ns: dict[int, int] = {}  # by the sender's rank
        self._sampled_ns = 0  # when the sampled tokens of the step in progress are everywhere

    def connect(self) -> None:
        """Serve vLLM's calls in this process from now on."""
        pipeline = self

        def send(group: Any, tensors: dict[str, Any], *_: Any, **__: Any) -> list[Handle]:
            return pipeline._send(group.rank, tensors)

        def receive(group: Any, *_: Any, **__: Any) -> tuple[dict[str, Any] | None, list[Handle], list[Any]]:
            if group.world_size == 1:
                return None, [], []
            return pipeline._receive(group.ranks[group.rank_in_group - 1])

        GroupCoordinator.isend_tensor_dict, GroupCoordinator.irecv_tensor_dict = send, receive
        dist.broadcast = self._broadcast

    def handed_over_ns(self, sender: int) -> int:
        """When a stage's host and that of the next one were done with what it sent last."""
        return self._handed_over_ns[sender]

    def _send(self, sender: int, tensors: dict[str, Any]) -> list[Handle]:
        transfer = Transfer(dict(tensors), self._native.now_ns(), self._gpu_ready_ns())
        self._queues.setdefault(sender, deque()).append(transfer)
        return [Handle(self._native, transfer)]

    def _receive(self, sender: int) -> tuple[dict[str, Any], list[Handle], list[Any]]:
        transfer = self._queues[sender].popleft()
        self._native.set_ns(max(self._native.now_ns(), transfer.sent_ns) + self._hand_over_ns())
        self._handed_over_ns[sender] = self._native.now_ns()
        here_ns = self._gpu_ready_ns()
        nbytes = sum(t.numel() * t.element_size() for t in transfer.tensors.values())
        transfer.done_ns = max(transfer.ready_ns, here_ns) + self._transfer_ns(nbytes)
        tensors = {name: torch.empty_like(t, device="cuda") for name, t in transfer.tensors.items()}
        transfer.tensors = {}
        return tensors, [Handle(self._native, transfer)], []

    def _broadcast(self, tensor: torch.Tensor, src: int, group: Any = None, **_: Any) -> None:
        """Sampled tokens from the last stage, which comes first here, to the others, which wait for them in
        a kernel while they compute the next step."""
        stream = torch.cuda.current_stream().cuda_stream
        if dist.get_rank() == src:
            nbytes = tensor.numel() * tensor.element_size()
            self._sampled_ns = self._gpu_ready_ns() + self._transfer_ns(nbytes)
            self._native.stream_wait(stream, self._sampled_ns)
        else:
            self._native.stream_crowd(stream, self._sampled_ns)

    def _gpu_ready_ns(self) -> int:
        """When the current stream could begin with something submitted now."""
        stream = torch.cuda.current_stream().cuda_stream
        return max(self._native.now_ns(), self._native.stream_time(stream))
