"""How much memory vLLM would find for its KV cache under other limits than the engine was started with.

vLLM sizes the KV cache once, by running the model at its limits.  A process forked just before that moment
answers for any limits: it forks once more, sets them, and runs vLLM's own measurement, as on a machine where
vLLM has not compiled this model before: a start that finds it compiled leaves more memory.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from revati.engines.base import InfeasibleError


@dataclass(frozen=True, slots=True)
class Limits:
    """The scheduler limits that a warmed engine can still change."""

    max_num_seqs: int
    max_num_batched_tokens: int


class MemoryOracle:
    """Forks the calling process to answer `available_bytes` later.

    Args:
        measure: vLLM's measurement under given limits; runs in a process of its own each time.
    """

    def __init__(self, measure: Callable[[Limits], list[int]]) -> None:
        self._answers: dict[Limits, list[int]] = {}
        gc.collect()
        gc.freeze()  # else each answer's collections would copy the whole heap
        self._channel, theirs = socket.socketpair()
        if os.fork() == 0:
            self._channel.close()
            _serve(theirs, measure)
            os._exit(0)
        theirs.close()
        self._replies = self._channel.makefile("r")

    def available_bytes(self, limits: Limits) -> list[int]:
        """Bytes for the KV cache on each worker.

        Raises:
            InfeasibleError: the model does not run at these limits.
        """
        if limits not in self._answers:
            request = [limits.max_num_seqs, limits.max_num_batched_tokens]
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            reply = json.loads(self._replies.readline() or '{"error": "the memory measurement died"}')
            if "error" in reply:
                raise InfeasibleError(reply["error"])
            self._answers[limits] = reply["bytes"]
        return self._answers[limits]


def _serve(channel: socket.socket, measure: Callable[[Limits], list[int]]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # The channel closes with the process that asks, which ends this one.
    for line in channel.makefile("r"):
        limits = Limits(*json.loads(line))
        pid = os.fork()
        if pid == 0:
            try:
                reply: dict[str, object] = {"bytes": measure(limits)}
            except Exception as error:  # whatever it raises, vLLM does not run at these limits
                reply = {"error": f"{type(error).__name__}: {error}"}
            channel.sendall(json.dumps(reply).encode() + b"\n")
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            channel.sendall(b'{"error": "the memory measurement crashed"}\n')
