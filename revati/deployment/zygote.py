"""The process from which all engines of a node are forked: it has imported them and started none.

usage: python -m revati.deployment.zygote SOCKET_PATH WORK_DIR ENGINE

Listens on SOCKET_PATH.  Each connection brings one trial; it is handed to the template (see `template`)
of its key, which is forked at the first such trial and again if it has ended: when memory is short, those
that were not asked for the longest end, before a new one starts and while others, such as another engine's
server, take it.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

from revati.deployment.template import die_with_parent, run_template
from revati.deployment.wire import TrialRequest, TrialResult, receive_line, send_result
from revati.engines.warm import engine_module

_ROOM_BYTES = 4 << 30  # of an engine that starts, and of trials that are running meanwhile
_SPARE_BYTES = 2 << 30  # of those trials, when others take memory
_ENDING_S = 10.0  # an idle template takes milliseconds, one with trials as long as they
_POLL_S = 0.1
_LOOK_S = 1.0


def available_bytes() -> int:
    """Memory of this machine that a process can get without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


class Zygote:
    def __init__(self, listener: socket.socket, work_dir: Path) -> None:
        self._listener, self._work_dir = listener, work_dir
        self._templates: dict[str, socket.socket] = {}  # in the order of their last trials
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        while True:
            for ready, _ in self._selector.select(_LOOK_S):
                if ready.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    self._dispatch(connection)
                elif self._templates.get(ready.data) is ready.fileobj:
                    self._forget(ready.data)
            if len(self._templates) > 1 and available_bytes() < _SPARE_BYTES:
                self._forget_oldest()

    def _dispatch(self, connection: socket.socket) -> None:
        with connection:
            line = receive_line(connection)
            if not line:
                return
            try:
                request = TrialRequest.from_line(line)
                key = engine_module(request.spec.engine).template_key(request.spec)
            except Exception as error:
                send_result(connection, TrialResult("failed", f"{type(error).__name__}: {error}"))
                return
            template = self._templates.pop(key, None) or self._fork(key, request, connection)
            self._templates[key] = template
            try:
                socket.send_fds(template, [line], [connection.fileno()])
            except OSError:
                send_result(connection, TrialResult("failed", "the engine's process died"))
                self._forget(key)

    def _fork(self, key: str, first: TrialRequest, connection: socket.socket) -> socket.socket:
        self._make_room()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            die_with_parent()
            for other in (ours, self._listener, connection, *self._templates.values()):
                other.close()
            self._selector.close()
            run_template(theirs, first, self._work_dir / f"engine_{key}")
            os._exit(0)
        theirs.close()
        self._selector.register(ours, selectors.EVENT_READ, key)
        return ours

    def _make_room(self) -> None:
        """End templates until a new one has room; they finish the trials that they have begun."""
        while self._templates and available_bytes() < _ROOM_BYTES:
            self._forget_oldest()
            deadline = time.monotonic() + _ENDING_S
            while available_bytes() < _ROOM_BYTES and time.monotonic() < deadline:
                time.sleep(_POLL_S)

    def _forget_oldest(self) -> None:
        self._forget(next(iter(self._templates)))

    def _forget(self, key: str) -> None:
        template = self._templates.pop(key)
        self._selector.unregister(template)
        template.close()


def main() -> None:
    socket_path, work_dir, engine = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep ends us
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        engine_module(engine).preload()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps templates
        listener.listen(64)
        Zygote(listener, work_dir).serve()


if __name__ == "__main__":
    main()
