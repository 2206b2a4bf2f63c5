"""Which warmed engines a node keeps when memory is short; a stand-in answers, no engine starts."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving import TINY

from revati.deployment import zygote
from revati.deployment.wire import TrialRequest, TrialResult, receive_line, send_result
from revati.spec import DeploymentSpec, HostSpec, ModelShape

HAVE_ROOM = 2  # templates

Ask = Callable[[int], str]


def answer_with_pid(channel: socket.socket, first: TrialRequest, work_dir: Path) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            send_result(connection, TrialResult("ok", reason=str(os.getpid())))


def left_by_children() -> int:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return 0 if len(children) >= HAVE_ROOM else 1 << 40


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Run a trial on so many GPUs; returns the process ID of the template that answered."""
    keys = SimpleNamespace(template_key=lambda spec: str(spec.tensor_parallel_size))
    monkeypatch.setattr(zygote, "engine_module", lambda engine: keys)
    monkeypatch.setattr(zygote, "run_template", answer_with_pid)
    monkeypatch.setattr(zygote, "available_bytes", left_by_children)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        server = os.fork()
        if server == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            zygote.Zygote(listener, tmp_path).serve()

    def ask(tensor_parallel_size: int) -> str:
        host = HostSpec("h200_xeon")
        spec = DeploymentSpec("vllm", ModelShape("tiny", TINY), "h200", host, tensor_parallel_size)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(tmp_path / "socket"))
            connection.sendall(TrialRequest(spec, tmp_path / "workload", tmp_path).to_line())
            return TrialResult.from_line(receive_line(connection)).reason

    yield ask
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)


def test_the_engine_asked_for_longest_ago_ends_when_memory_is_short(ask: Ask) -> None:
    first, second = ask(1), ask(2)
    assert ask(1) == first
    third = ask(4)
    assert ask(1) == first
    assert ask(2) not in (second, third)
    assert ask(1) == first
    assert ask(4) not in (second, third)


def test_memory_of_this_machine_is_known() -> None:
    assert 1 << 20 < zygote.available_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
