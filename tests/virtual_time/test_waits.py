"""Clocks and waits of one or a few programs: everything takes exactly its virtual time."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from revati.interception.gpu import load_gpu
from revati.interception.preload import emulated_environment
from revati.virtual_time.domain import Domain
from tests.virtual_time.members import PROGRAMS, Members, line_of

# Further interpreters to try, separated by colons: another Python version, for instance.
PYTHONS = [sys.executable, *filter(None, os.environ.get("REVATI_TEST_PYTHONS", "").split(":"))]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_wait_of_libc(members: Members, python: str) -> None:
    process = members.domain.start([python, PROGRAMS / "waits.py"], stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "ok\n")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("part", ["threads", "asyncio", "uvloop", "fork", "spawn", "subprocesses"])
def test_python_programs(members: Members, python: str, part: str) -> None:
    if part == "uvloop" and subprocess.run([python, "-c", "import uvloop"], capture_output=True).returncode:
        pytest.skip("no uvloop for this interpreter")
    process = members.domain.start(
        [python, PROGRAMS / "python_waits.py", part], stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "ok\n")


def test_an_hour_of_silence_between_two_programs(members: Members) -> None:
    sleeper = """
import ctypes, time
real_now = ctypes.CDLL(None).revati_real_now
real_now.restype = ctypes.c_int64
begin, real = time.time(), real_now()
time.sleep(3600)
print(round(time.time() - begin, 4), (real_now() - real) * 1e-9)
"""
    reports = [line.split() for line in members.run(sleeper, sleeper)]
    assert [virtual_s for virtual_s, _ in reports] == ["3600.0", "3600.0"]
    assert min(float(real_s) for _, real_s in reports) < 1  # the first waits for the second's start, too
    assert members.domain.now_s == pytest.approx(3600, abs=1e-3)


def test_clocks_of_all_programs_agree(members: Members) -> None:
    reader = "import time; time.sleep({}); time.sleep(10 - {}); print(time.time_ns(), time.monotonic_ns())"
    first, second = members.run(reader.format(3, 3), reader.format(7, 7))
    assert first == second


def test_a_timer_inside_a_gpu_wait_is_served_at_its_own_time(members: Members) -> None:
    gpu = (
        "import ctypes, time; ctypes.CDLL(None).revati_sleep_until(ctypes.c_int64(10**10))\n"
        "print(time.monotonic_ns())"
    )
    timer = "import time\nfor _ in range(3): time.sleep(2); print(time.monotonic_ns())"
    waited, ticked = members.run(gpu, timer)
    end_ns = int(waited)
    assert [end_ns - int(line) for line in ticked.split()] == [8 * 10**9, 6 * 10**9, 4 * 10**9]


def test_charges_of_programs_run_side_by_side(members: Members) -> None:
    charging = (
        "import ctypes, time\nt = time.monotonic_ns()\n"
        "for _ in range(100): ctypes.CDLL(None).revati_charge(ctypes.c_int64(10**7))\n"
        "print(time.monotonic_ns() - t)"
    )
    assert members.run(charging, charging, charging) == ["1000000000"] * 3
    assert members.domain.now_s == pytest.approx(1)


def test_programs_that_import_run_side_by_side(members: Members, tmp_path: Path) -> None:
    """Who has computed for 0.5 s goes on with files while another one has the token.

    Both need each other's numbers: with one of them running at a time, 100 numbers would take 50 s.
    """
    program = """
import os
mine, other = {files}
for number in range(100):
    with open(mine, "w") as file:
        file.write(str(number))
    while True:
        with open(other) as file:
            if int(file.read() or -1) >= number:
                break
"""
    files = [str(tmp_path / name) for name in ("one", "other")]
    for name in files:
        Path(name).touch()
    begin_s = time.monotonic()
    members.run(program.format(files=files), program.format(files=files[::-1]), timeout_s=20)
    assert time.monotonic() - begin_s < 20
    assert members.domain.now_s < 0.1


def test_loops_that_never_block_count_as_waiting(members: Members) -> None:
    spinning = """
import os, select, time
def until(seconds, action):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        action()
    return time.monotonic() - end
poller = select.epoll()
print(max(until(2, a) for a in (lambda: None, os.sched_yield, lambda: time.sleep(0), lambda: poller.poll(0))))
"""
    (late_s,) = members.run(spinning)
    assert float(late_s) < 1e-3


def test_messages_through_shared_memory_come_when_they_are_written(members: Members) -> None:
    ping_pong = """
import ctypes, mmap, os, time
charge = ctypes.CDLL(None).revati_charge
memory = mmap.mmap(-1, 4096)
def wait(index, value):
    while memory[index] != value:
        os.sched_yield()
if os.fork() == 0:
    for value in range(1, 201):
        wait(0, value)
        charge(ctypes.c_int64(700_000))
        memory[1] = value
    os._exit(0)
begin = time.monotonic()
for value in range(1, 201):
    charge(ctypes.c_int64(300_000))
    memory[0] = value
    charge(ctypes.c_int64(100_000))  # after the message: it doesn't delay it
    wait(1, value)
print(time.monotonic() - begin)
"""
    (seconds,) = members.run(ping_pong)
    assert float(seconds) == pytest.approx(0.2, rel=0.005)


def test_an_event_loop_that_waits_for_a_lock_does_not_hold_the_clock(members: Members) -> None:
    """Its descriptor stays readable, and its handler only tries the lock, like gloo's."""
    (output,) = members.run("""
import ctypes, os, select, threading, time
read_end, write_end = os.pipe()
poller, lock = select.epoll(), threading.Lock()
poller.register(read_end, select.EPOLLIN)
def loop():
    while True:
        poller.poll()
        if lock.acquire(blocking=False):
            break
    print(os.read(read_end, 1).decode(), time.monotonic() - begin)
begin = time.monotonic()
handler = threading.Thread(target=loop)
with lock:
    handler.start()
    os.write(write_end, b"x")
    time.sleep(2)
handler.join()
""")
    letter, seconds = output.split()
    assert (letter, float(seconds)) == ("x", pytest.approx(2, abs=1e-3))


def test_idle_event_loops_of_listed_libraries_are_cheap() -> None:
    """A loop that waits 10 ms at a time for descriptors, like gloo's, costs an hour's silence little."""
    looping = """
import ctypes, os, select, threading, time
libc, epoll, buffer = ctypes.CDLL(None), select.epoll(), ctypes.create_string_buffer(64)
read_end, write_end = os.pipe()
epoll.register(read_end)
heard = []
def loop():
    while libc.epoll_wait(epoll.fileno(), buffer, 4, 10) == 0: pass
    heard.append(time.monotonic())
threading.Thread(target=loop).start()
time.sleep(3600.5)
sent = time.monotonic()
os.write(write_end, b"x")
time.sleep(1)
print(heard[0] - sent)
"""
    with Domain.create(idle_libraries=["libffi*", "_ctypes*"]) as domain:
        assert Members(domain).run(looping) == ["0.0"]
        assert domain.counters().grants < 10_000


def test_what_waits_for_an_idle_event_loop_waits_as_long_as_really() -> None:
    """As for gloo's when a process group goes; vLLM kills an engine core that takes 5 s to shut down."""
    ending = """
import ctypes, os, select, threading, time
libc, epoll, buffer = ctypes.CDLL(None), select.epoll(), ctypes.create_string_buffer(64)
file, _ = os.pipe()
epoll.register(file)
ended, handle, looks = threading.Event(), ctypes.c_ulong(), threading.Condition()
@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def loop(_):
    while not ended.is_set():
        with looks: looks.notify_all()
        libc.epoll_wait(epoll.fileno(), buffer, 4, 10)
libc.pthread_create(ctypes.byref(handle), None, loop, None)
time.sleep(60.0037)
begin = time.monotonic()
with looks:
    epoll.unregister(file)
    looks.wait()
print(time.monotonic() - begin)
time.sleep(60.0037)
begin = time.monotonic()
ended.set()
libc.pthread_join(handle, None)
print(time.monotonic() - begin)
"""
    with Domain.create(idle_libraries=["libffi*", "_ctypes*"]) as domain:
        waited_s = [float(word) for word in Members(domain).run(ending)[0].split()]
    assert len(waited_s) == 2
    assert all(0 <= one <= 0.011 for one in waited_s)


def test_event_loops_wake_on_time(members: Members) -> None:
    counting = """
import ctypes, select
libc, epoll, buffer = ctypes.CDLL(None), select.epoll(), ctypes.create_string_buffer(64)
libc.revati_now.restype = ctypes.c_int64
begin = libc.revati_now()
for _ in range(1000): libc.epoll_wait(epoll.fileno(), buffer, 4, 10)
print(libc.revati_now() - begin)
"""
    assert members.run(counting) == [str(10 * 10**9)]


def test_threads_of_a_program_that_has_overwritten_its_environment(members: Members) -> None:
    """As setproctitle does; what it was started with must not be asked for again."""
    starting = """
import ctypes, threading
begin, end = map(int, open("/proc/self/stat").read().rsplit(")", 1)[1].split()[47:49])
ctypes.memset(begin, 0, end - begin)
def work():
    lock.acquire()
    lock.release()
for _ in range(300):
    lock = threading.Lock()
    lock.acquire()
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads: thread.start()
    lock.release()
    for thread in threads: thread.join()
print("done")
"""
    assert members.run(starting) == ["done"]


def test_cpu_time_moves_clocks_by_the_factor() -> None:
    burning = """
import time
begin, cpu = time.monotonic(), time.thread_time()
while time.thread_time() - cpu < 0.2: pass
print((time.monotonic() - begin) / (time.thread_time() - cpu))
"""
    with Domain.create(cpu_factor=3.0, skew_us=100) as domain:
        (ratio,) = Members(domain).run(burning)
    assert float(ratio) == pytest.approx(3, rel=0.02)


def test_real_time_threads_do_not_hold_the_clock() -> None:
    program = """
import ctypes, threading, time
def helper():
    ctypes.CDLL(None).pthread_setname_np(ctypes.c_ulong(threading.get_ident()), b"watchdog_7")
    event.wait(0.3)   # real time
    done.append(1)
event, done = threading.Event(), []
thread = threading.Thread(target=helper); thread.start()
begin = time.monotonic(); time.sleep(1000); slept = time.monotonic() - begin
assert not done, "the helper's wait took virtual time"
while not done: time.sleep(1)
print(round(slept, 6))
"""
    with Domain.create(real_time_threads=["watchdog_*"]) as domain:
        assert Members(domain).run(program) == ["1000.0"]


def test_a_wait_that_no_hook_sees_takes_its_real_time(members: Members, tmp_path: Path) -> None:
    """However many timers others have meanwhile."""
    program = f"""
import fcntl, threading, time
def tick():
    while True: time.sleep(1)
threading.Thread(target=tick, daemon=True).start()
begin = time.monotonic()
with open({str(tmp_path / "lock")!r}) as file:
    print("waits")
    fcntl.flock(file, fcntl.LOCK_EX)
print(time.monotonic() - begin)
"""
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = members.start(program)
        assert line_of(process) == "waits"
        time.sleep(0.5)
        fcntl.flock(file, fcntl.LOCK_UN)
    assert float(line_of(process)) < 2


def test_a_program_that_does_not_join_takes_its_real_time(members: Members, tmp_path: Path) -> None:
    static, source = tmp_path / "static", tmp_path / "static.c"
    source.write_text("#include <time.h>\nint main() { while (clock() < 6 * CLOCKS_PER_SEC); }")
    subprocess.run(["gcc", "-static", "-o", static, source], check=True)
    program = f"""
import subprocess, threading, time
def tick():
    while True: time.sleep(1)
threading.Thread(target=tick, daemon=True).start()
begin = time.monotonic()
subprocess.run([{str(static)!r}], check=True)
print(time.monotonic() - begin)
"""
    assert float(members.run(program)[0]) < 2


HOLDER = """
#include <pthread.h>
#include <time.h>
#include <unistd.h>
void hold(pthread_mutex_t *mutex, volatile int *locked) {
  pthread_mutex_lock(mutex);
  *locked = 1;
  for (clock_t begin = clock(); clock() - begin < CLOCKS_PER_SEC / 100;);
  pthread_mutex_unlock(mutex);
  usleep(200000);  /* without Python's lock, which the other thread needs now */
}
"""


def test_a_mutex_of_a_real_time_thread_takes_no_virtual_time(members: Members, tmp_path: Path) -> None:
    """Whoever waits for it holds the clock, though others have timers that are due."""
    source, library = tmp_path / "holder.c", tmp_path / "holder.so"
    source.write_text(HOLDER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    program = f"""
import ctypes, threading, time
libc, holder = ctypes.CDLL(None), ctypes.CDLL({str(library)!r})
mutex, locked = ctypes.create_string_buffer(64), ctypes.c_int(0)
libc.pthread_mutex_init(mutex, None)
def watch():
    libc.revati_real_time_thread(1)
    holder.hold(mutex, ctypes.byref(locked))
def tick():
    for _ in range(10000):
        time.sleep(0.001)
threading.Thread(target=tick, daemon=True).start()
threading.Thread(target=watch).start()
while not locked.value: time.sleep(0.001)
begin = time.monotonic()
libc.pthread_mutex_lock(mutex)
print(time.monotonic() - begin)
"""
    assert float(members.run(program)[0]) < 1e-3


def test_polls_of_a_charged_phase_cost_what_the_phase_does(members: Members) -> None:
    """An allocator asks at each allocation whether events are over; only a loop of questions waits."""
    polling = """
import ctypes
from revati.interception.core import NativeCore
core, cuda = NativeCore(), ctypes.CDLL("libcudart.so.13")
stream, event = ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cudaStreamCreate(ctypes.byref(stream)) == cuda.cudaEventCreate(ctypes.byref(event)) == 0
begin = core.now_ns()
ctypes.CDLL(None).revati_stream_wait(stream, ctypes.c_int64(begin + 8_000_000))
assert cuda.cudaEventRecord(event, stream) == 0
for _ in range(2):
    core.phase_begin(1, 1_000_000)
    for _ in range(40):
        assert cuda.cudaEventQuery(event) != 0
    core.phase_end(-1)
    print(core.now_ns() - begin)
core.phase_begin(2, 1_000_000)
while cuda.cudaEventQuery(event) != 0:
    pass
core.phase_end(-1)
print(core.now_ns() - begin)
"""
    environment = emulated_environment(load_gpu("h200"), 1, os.environ)
    process = members.start(polling, env=members.domain.environment(environment))
    assert members.domain.wait([process], 30) == [0]
    assert process.stdout is not None
    first, second, looped = map(int, process.stdout.read().split())
    assert (first, second) == (1_000_000, 2_000_000)
    assert looped == pytest.approx(9_000_000, rel=0.02)
