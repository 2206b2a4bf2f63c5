"""Which warmed engines a node keeps when memory is short; a stand-in answers, no engine starts."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving import TINY

from revati.deployment import zygote
from revati.deployment.wire import TrialRequest, TrialResult, receive_line, send_result
from revati.spec import DeploymentSpec, HostSpec, ModelShape

TEMPLATE_BYTES = 2 << 30
MEMORY_BYTES = 7 << 30  # two templates leave no room for a third

Ask = Callable[[int], str]


def answer_with_pid(channel: socket.socket, first: TrialRequest, work_dir: Path) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            send_result(connection, TrialResult("ok", reason=str(os.getpid())))


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """A file that exists while other processes take as much memory as two templates."""
    return tmp_path / "others"


@pytest.fixture
def ask(tmp_path: Path, others: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Run a trial on so many GPUs; returns the process ID of the template that answered."""

    def left() -> int:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return MEMORY_BYTES - TEMPLATE_BYTES * (len(children) + 2 * others.exists())

    keys = SimpleNamespace(template_key=lambda spec: str(spec.tensor_parallel_size))
    monkeypatch.setattr(zygote, "engine_module", lambda engine: keys)
    monkeypatch.setattr(zygote, "run_template", answer_with_pid)
    monkeypatch.setattr(zygote, "available_bytes", left)
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


def test_it_ends_when_others_take_the_memory(ask: Ask, others: Path) -> None:
    first, second = ask(1), ask(2)
    others.touch()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{first}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{first}").exists()
    assert ask(2) == second
    others.unlink()
    assert ask(1) != first


def test_the_last_one_stays(ask: Ask, others: Path) -> None:
    last = ask(1)
    others.touch()
    time.sleep(2 * zygote._LOOK_S)
    assert ask(1) == last


def test_memory_of_this_machine_is_known() -> None:
    assert 1 << 20 < zygote.available_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
