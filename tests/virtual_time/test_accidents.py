"""Killed, stopped and deadlocked members."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from revati.virtual_time.domain import Domain, DomainEndedError
from tests.virtual_time.members import Members, line_of, tell

COMPUTE = "print('computing')\nwhile True: pass"
SLEEP = "import time\nprint('sleeping', flush=True)\ntime.sleep(5); print(5)"


def _gone(pid: int) -> bool:
    return (
        not Path(f"/proc/{pid}").exists()
        or Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    )


@pytest.mark.parametrize("victim", ["has the token", "waits"])
def test_a_killed_member_ends_the_domain(members: Members, victim: str) -> None:
    sleeper = members.start("import time, sys; print('up'); sys.stdin.read()", stdin=subprocess.PIPE)
    assert line_of(sleeper) == "up"
    computer = members.start(COMPUTE)
    assert line_of(computer) == "computing"
    killed = computer if victim == "has the token" else sleeper
    begin_s = time.monotonic()
    killed.kill()
    with pytest.raises(
        DomainEndedError, match=rf"process {killed.pid} .* was (ended by signal 9|killed or crashed)"
    ):
        members.domain.wait([sleeper, computer], timeout_s=10)
    members.domain.end()
    assert time.monotonic() - begin_s < 5
    assert _gone(sleeper.pid)
    assert _gone(computer.pid)


def test_shared_memory_of_killed_members_goes_with_the_domain() -> None:
    """However it was created; what was there before is none of the domain's business."""
    others = Path(f"/dev/shm/revati-test-{os.getpid()}")
    others.touch()
    with Domain.create(tolerate_deaths=True) as domain:
        member = Members(domain).start(f"""
import multiprocessing.shared_memory, multiprocessing.synchronize, os, time
memory = multiprocessing.shared_memory.SharedMemory(create=True, size=100)
lock = multiprocessing.get_context("spawn").Lock()
open("{others}-opened", "w").close()
os.close(os.open("{others}", os.O_CREAT | os.O_RDWR))
print(memory.name, "sem." + lock._semlock.name.strip("/"), "{others.name}-opened", flush=True)
time.sleep(1e6)
""")
        created = [others.with_name(name) for name in line_of(member).split()]
        assert len(created) == 3
        assert all(path.exists() for path in created)
        member.kill()
        member.wait()
    assert not any(path.exists() for path in created)
    assert others.exists()
    others.unlink()


def test_the_token_of_a_killed_member_goes_on() -> None:
    with Domain.create(tolerate_deaths=True) as domain:
        members = Members(domain)
        computer = members.start(COMPUTE)
        assert line_of(computer) == "computing"
        sleeper = members.start(SLEEP)
        time.sleep(0.3)
        computer.kill()
        output, _ = sleeper.communicate(timeout=10)
        assert output.split() == ["sleeping", "5"]


@pytest.mark.matrix
def test_killed_anywhere_in_the_protocol() -> None:
    """A member that passes the token all the time dies at random points; the others go on every time."""
    with Domain.create(tolerate_deaths=True, stuck_s=3) as domain:
        members = Members(domain)
        busy = "import time\nwhile True: time.sleep(1e-5)"
        counter = members.start(
            "import time, sys\nfor line in sys.stdin: time.sleep(1); print('on')", stdin=subprocess.PIPE
        )
        for round_number in range(50):
            victims = [members.start(busy) for _ in range(2)]
            time.sleep(0.2 + round_number * 1e-4)
            for victim in victims:
                victim.kill()
                victim.wait()
            tell(counter, "go")
            assert line_of(counter) == "on"


def test_a_domain_on_hold_stands_still(members: Members) -> None:
    ticking = "import time\nwhile True: time.sleep(1); print(time.monotonic(), flush=True)"
    ticker = members.start(ticking)
    line_of(ticker)
    members.domain.hold()
    time.sleep(0.1)
    before_s = members.domain.now_s
    time.sleep(4)  # longer than a stuck domain lives
    assert members.domain.now_s == before_s
    members.domain.go_on()
    time.sleep(0.2)
    assert members.domain.now_s > before_s + 10
    assert members.domain.ended is None


def test_a_member_stopped_between_grant_and_wake_holds_the_clock(members: Members) -> None:
    stopped = members.start(
        "import sys, time\nprint('up'); sys.stdin.readline(); time.sleep(10); print(time.monotonic_ns())",
        stdin=subprocess.PIPE,
    )
    assert line_of(stopped) == "up"
    stopper = members.start(
        "import os, signal, sys, time\nprint('up'); sys.stdin.readline()\n"
        f"time.sleep(5); os.kill({stopped.pid}, signal.SIGSTOP)\n"
        "print('stopped'); time.sleep(20); print(time.monotonic_ns())",
        stdin=subprocess.PIPE,
    )
    assert line_of(stopper) == "up"
    # Both set off at the same time: the stopper stands still until both have their line.
    os.kill(stopper.pid, signal.SIGSTOP)
    tell(stopper, "go")
    tell(stopped, "go")
    time.sleep(0.2)
    os.kill(stopper.pid, signal.SIGCONT)
    assert line_of(stopper) == "stopped"
    time.sleep(1)
    assert members.domain.now_s < 20, "time went on without the stopped member"
    os.kill(stopped.pid, signal.SIGCONT)
    assert int(line_of(stopper)) - int(line_of(stopped)) == 15 * 10**9


def test_a_deadlock_is_diagnosed_and_ended(capfd: pytest.CaptureFixture[str]) -> None:
    program = """
import threading, time
first, second = threading.Lock(), threading.Lock()
def other():
    with second:
        time.sleep(1)
        first.acquire()
thread = threading.Thread(target=other); thread.start()
with first:
    time.sleep(1)
    second.acquire()
"""
    begin_s = time.monotonic()
    with Domain.create(stuck_s=1) as domain:
        process = Members(domain).start(program)
        with pytest.raises(DomainEndedError, match="stuck"):
            domain.wait([process], timeout_s=10)
    assert time.monotonic() - begin_s < 6
    diagnosis = capfd.readouterr().err
    assert f"pid {process.pid}" in diagnosis
    assert diagnosis.count("in sem_wait") + diagnosis.count("in sem_clockwait") == 2
    assert "its time 1.000" in diagnosis


def test_an_unhooked_wait_does_not_keep_the_token(members: Members) -> None:
    """flock() is no hook: whoever holds the lock must be able to go on."""
    program = """
import fcntl, os, tempfile, time
path = tempfile.mktemp()
held = open(path, "w"); fcntl.flock(held, fcntl.LOCK_EX)
read_end, write_end = os.pipe()
if os.fork() == 0:
    mine = open(path); os.write(write_end, b"x"); fcntl.flock(mine, fcntl.LOCK_EX)
    os.write(write_end, b"y"); os._exit(0)
os.read(read_end, 1); time.sleep(30); fcntl.flock(held, fcntl.LOCK_UN)
assert os.read(read_end, 1) == b"y"; os.wait(); os.unlink(path); print(round(time.monotonic() - begin, 3))
"""
    assert members.run("import time; begin = time.monotonic()" + program) == ["30.0"]


LAUNCHER = """
import sys
from revati.virtual_time.domain import Domain
domain = Domain.create()
process = domain.start([sys.executable, "-c", "while True: pass"])
print(process.pid, domain.path, flush=True)
process.wait()
"""


def test_a_killed_launcher_takes_its_members_along() -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    pid, path = line_of(launcher).split()
    time.sleep(0.3)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 5
    while (not _gone(int(pid)) or Path(path).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _gone(int(pid))
    assert not Path(path).exists()


def test_programs_outside_reach_members(members: Members) -> None:
    """Input from outside arrives at the domain's present."""
    process = members.start(
        "import sys\nfor line in sys.stdin: print(line.upper(), end='')", stdin=subprocess.PIPE
    )
    for word in ("hello", "again"):
        threading.Timer(0.1, tell, (process, word)).start()
        assert line_of(process) == word.upper()
    assert process.stdin
    process.stdin.close()
    assert members.domain.wait([process], timeout_s=10) == [0]


def test_programs_that_start_at_once_have_a_place_each(members: Members) -> None:
    """All wait for the monitor, which has just been started itself, and join together."""
    sleeper = "import time; t = time.monotonic(); time.sleep(1); print(round(time.monotonic() - t, 6))"
    assert members.run(*[sleeper] * 24, timeout_s=15) == ["1.0"] * 24
    assert members.domain.now_s == pytest.approx(1)
