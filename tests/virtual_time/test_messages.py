"""Waits for descriptors that are unlike the usual one: shared, interrupted, many at once, or closed."""

from __future__ import annotations

import pytest

from tests.virtual_time.members import Members


def test_processes_that_wait_for_the_same_descriptor(members: Members) -> None:
    """Each message reaches one of them, at its own time."""
    (output,) = members.run("""
import os, time
work_read, work_write = os.pipe()
done_read, done_write = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        while message := os.read(work_read, 8):
            delay = time.monotonic_ns() - int.from_bytes(message)
            time.sleep(0.25)
            os.write(done_write, delay.to_bytes(8))
        os._exit(0)
    os.close(os.dup(work_read))
for _ in range(30):
    time.sleep(0.1)
    os.write(work_write, time.monotonic_ns().to_bytes(8))
print(max(int.from_bytes(os.read(done_read, 8)) for _ in range(30)))
""")
    assert int(output) == 0


def test_threads_that_wait_for_the_same_descriptor(members: Members) -> None:
    (output,) = members.run("""
import os, threading, time
read_end, write_end = os.pipe()
def wait():
    os.read(read_end, 1)
    times.append(time.monotonic() - begin)
begin, times = time.monotonic(), []
threads = [threading.Thread(target=wait) for _ in range(3)]
for thread in threads: thread.start()
for _ in threads:
    time.sleep(1)
    os.write(write_end, b"x")
for thread in threads: thread.join()
print(*(round(t, 6) for t in times))
""")
    assert output == "1.0 2.0 3.0"


@pytest.mark.parametrize("descriptors", [1, 5, 100])
@pytest.mark.parametrize("call", ["poll", "select"])
def test_a_wait_for_one_of_many(members: Members, call: str, descriptors: int) -> None:
    (output,) = members.run(f"""
import os, select, threading, time
pipes = [os.pipe() for _ in range({descriptors})]
def send():
    time.sleep(2)
    os.write(pipes[-1][1], b"x")
threading.Thread(target=send).start()
begin, files = time.monotonic(), [read_end for read_end, _ in pipes]
if "{call}" == "poll":
    poller = select.poll()
    for file in files: poller.register(file, select.POLLIN)
    wait = lambda seconds: [file for file, _ in poller.poll(seconds * 1000)]
else:
    wait = lambda seconds: select.select(files, [], [], seconds)[0]
early = wait(1.5)
found = wait(9)
print(early, found == files[-1:], round(time.monotonic() - begin, 6))
""")
    assert output == "[] True 2.0"


def test_a_regular_file_is_always_ready(members: Members) -> None:
    (output,) = members.run("""
import select, tempfile, time
begin = time.monotonic()
with tempfile.TemporaryFile() as file:
    print(select.select([file], [], [], 5)[0] == [file], round(time.monotonic() - begin, 6))
""")
    assert output == "True 0.0"


@pytest.mark.parametrize("restarts", [False, True])
def test_handlers_of_signals_interrupt_a_read(members: Members, restarts: bool) -> None:
    """Or restart it, if they were installed so."""
    (output,) = members.run(f"""
import ctypes, os, signal, threading, time
libc = ctypes.CDLL(None, use_errno=True)
read_end, write_end = os.pipe()
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
signal.siginterrupt(signal.SIGUSR1, {not restarts})
me = threading.get_ident()
def disturb():
    time.sleep(1)
    signal.pthread_kill(me, signal.SIGUSR1)
    time.sleep(1)
    os.write(write_end, b"x")
threading.Thread(target=disturb).start()
begin, buffer = time.monotonic(), ctypes.create_string_buffer(1)
result = libc.read(read_end, buffer, 1)
print(result, ctypes.get_errno(), len(handled), round(time.monotonic() - begin, 6))
""")
    assert output == ("1 0 1 2.0" if restarts else "-1 4 1 1.0")


def test_a_program_that_closes_every_descriptor_still_hears(members: Members) -> None:
    (output,) = members.run("""
import os, time
os.closerange(3, 65536)
read_end, write_end = os.pipe()
if os.fork() == 0:
    for file in range(3, 4096):
        if file != write_end:
            try: os.close(file)
            except OSError: pass
    time.sleep(1)
    os.write(write_end, b"x")
    os._exit(0)
begin = time.monotonic()
os.read(read_end, 1)
print(round(time.monotonic() - begin, 6))
""")
    assert output == "1.0"


def test_a_message_of_a_process_that_is_gone(members: Members) -> None:
    """And of its end: what was written before arrives, then the end of the file, both in time."""
    (output,) = members.run("""
import os, time
read_end, write_end = os.pipe()
if os.fork() == 0:
    time.sleep(1)
    os.write(write_end, b"x")
    time.sleep(1)
    os._exit(0)
os.close(write_end)
begin = time.monotonic()
for _ in range(2):
    print(os.read(read_end, 1), round(time.monotonic() - begin, 6))
""")
    assert output.splitlines() == ["b'x' 1.0", "b'' 2.0"]
