"""Nothing arrives before it was sent, nor late; and the checker sees it when the protocol is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from revati.virtual_time.domain import Domain
from tests.virtual_time.members import PROGRAMS, Members, line_of


def exchange(processes: int, messages: int, load: int = 0, **options: Any) -> dict[str, float]:
    """The report of ``messages.py``; ``load``: busy loops beside it."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
    try:
        with Domain.create(**options) as domain:
            command = [sys.executable, PROGRAMS / "messages.py", str(processes), str(messages), "1"]
            process = domain.start(command, stdout=subprocess.PIPE, text=True)
            output, _ = process.communicate(timeout=600)
            assert domain.ended is None
            report: dict[str, float] = json.loads(output)
            return report
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def test_messages_arrive_when_they_are_sent() -> None:
    report = exchange(processes=16, messages=4800, load=1)
    assert report == {"received": 4800, "early": 0, "worst_late_us": 0}


@pytest.mark.matrix
@pytest.mark.parametrize("processes", [2, 16, 64])
def test_many_messages_under_load(processes: int) -> None:
    messages = 100_000 // processes * processes
    report = exchange(processes, messages, load=2)
    assert (report["received"], report["early"]) == (messages, 0)
    assert report["worst_late_us"] < 1000


@pytest.mark.matrix
def test_many_messages_with_charged_cpu_time() -> None:
    report = exchange(16, 16_000, load=1, cpu_factor=1.0, skew_us=100)
    assert (report["received"], report["early"]) == (16_000, 0)


def test_the_checker_sees_jumps_past_messages_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVATI_TEST_BREAK", "scan")
    report = exchange(processes=16, messages=4800, load=1)
    assert report["worst_late_us"] > 1000


LISTENER = """
import selectors, socket
with socket.create_server(("127.0.0.1", 0)) as listener, selectors.DefaultSelector() as selector:
    print(listener.getsockname()[1], flush=True)
    selector.register(listener, selectors.EVENT_READ)
    left = 30
    while left:
        if selector.select(0.1):  # like a server that also has timers
            connection, _ = listener.accept()
            connection.sendall(b"hello")
            connection.close()
            left -= 1
"""
CALLER = """
import socket, time
for _ in range(30):
    time.sleep(0.017)
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", {port})) as connection:
        connection.recv(5)
    print(time.monotonic() - begin)
"""


def test_a_connection_is_accepted_when_it_is_made(members: Members) -> None:
    server = members.start(LISTENER)
    client = members.start(CALLER.format(port=int(line_of(server))))
    assert members.domain.wait([server, client], 30) == [0, 0]
    assert client.stdout
    assert [float(line) for line in client.stdout] == [0] * 30


CHILDREN = 20
STARTS = f"""
import subprocess, sys, threading, time
def tick():
    while True:
        time.sleep(100)
threading.Thread(target=tick, daemon=True).start()
time.sleep(0.001)
for _ in range({CHILDREN}):
    begin = time.time()
    print(float(subprocess.check_output([sys.executable, "-c", "import time; print(time.time())"])) - begin)
"""


def durations_of_starts(members: Members) -> list[float]:
    """Virtual seconds from before each child's start until it looked at the clock."""
    [output] = members.run(STARTS)
    return [float(line) for line in output.splitlines()]


def test_no_time_passes_while_a_child_starts(members: Members) -> None:
    assert durations_of_starts(members) == [0] * CHILDREN


def test_without_a_reserved_slot_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVATI_TEST_BREAK", "reserve")
    with Domain.create() as domain:
        # A child that is quick to join can still be in time.
        assert max(durations_of_starts(Members(domain))) > 1
