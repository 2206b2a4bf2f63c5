"""Every timed wait of libc, absolute and relative, takes its time in virtual seconds; the waits wake, too.

    waits.py

Prints "ok". Calls libc by ctypes, so that each function's own interposition is what runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

libc = ctypes.CDLL(None, use_errno=True)
REALTIME, MONOTONIC = time.CLOCK_REALTIME, time.CLOCK_MONOTONIC
TOLERANCE_S = 1e-5


class timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


def spec(seconds: float) -> object:
    ns = round(seconds * 1e9)
    return ctypes.byref(timespec(ns // 10**9, ns % 10**9))


def at(clock: int, seconds: float) -> object:
    ns = time.clock_gettime_ns(clock) + round(seconds * 1e9)
    return ctypes.byref(timespec(ns // 10**9, ns % 10**9))


@contextmanager
def takes(seconds: float, what: str, tolerance_s: float = TOLERANCE_S) -> Iterator[None]:
    begin = [time.clock_gettime(clock) for clock in CLOCKS]
    yield
    for clock, before in zip(CLOCKS, begin, strict=True):
        took_s = time.clock_gettime(clock) - before
        assert abs(took_s - seconds) < tolerance_s, (
            f"{what}: {took_s} s of clock {clock} instead of {seconds}"
        )


CLOCKS = (REALTIME, MONOTONIC, time.CLOCK_MONOTONIC_RAW, time.CLOCK_BOOTTIME, 5, 6)  # 5, 6: the coarse ones


def sleeps() -> None:
    with takes(2, "nanosleep"):
        libc.nanosleep(spec(2), None)
    for clock in (REALTIME, MONOTONIC):
        with takes(3, "clock_nanosleep, relative"):
            assert libc.clock_nanosleep(clock, 0, spec(3), None) == 0
        with takes(4, "clock_nanosleep, absolute"):
            assert libc.clock_nanosleep(clock, 1, at(clock, 4), None) == 0
    with takes(0.5, "usleep"):
        libc.usleep(500_000)
    with takes(7, "sleep"):
        assert libc.sleep(7) == 0
    with takes(2, "gettimeofday, time"):
        before = time.time(), libc.time(None)
        time.sleep(2)
        assert libc.time(None) - before[1] == 2


def descriptors() -> None:
    read_end, write_end = os.pipe()
    with takes(1.5, "poll"):
        assert select.poll().poll(1500) == []
    with takes(2.5, "select"):
        assert select.select([read_end], [], [], 2.5) == ([], [], [])
    epoll = select.epoll()
    epoll.register(read_end, select.EPOLLIN)
    with takes(3.5, "epoll_wait"):
        assert epoll.poll(3.5) == []
    buffer = ctypes.create_string_buffer(64)
    with takes(1.25, "epoll_pwait2"):
        assert libc.epoll_pwait2(epoll.fileno(), buffer, 4, spec(1.25), None) == 0
    with takes(1.25, "ppoll"):
        assert libc.ppoll(None, ctypes.c_ulong(0), spec(1.25), None) == 0
    with takes(1.25, "pselect"):
        assert libc.pselect(0, None, None, None, spec(1.25), None) == 0
    receiver, _sender = socket.socketpair()
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timespec_bytes(2, 0))
    with takes(2, "SO_RCVTIMEO"), suppress(BlockingIOError):
        receiver.recv(1)
    for wait in (
        lambda: epoll.poll(100),
        lambda: select.select([read_end], [], [], 100),
        lambda: os.read(read_end, 1),
    ):
        with takes(5, "a message"), later(5, lambda: os.write(write_end, b"x")):
            assert wait()
        if select.select([read_end], [], [], 0)[0]:
            os.read(read_end, 1)


def timespec_bytes(sec: int, usec: int) -> bytes:
    return sec.to_bytes(8, "little") + usec.to_bytes(8, "little")


@contextmanager
def later(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    def run() -> None:
        time.sleep(seconds)
        action()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()


def objects() -> None:
    semaphore = ctypes.create_string_buffer(32)
    libc.sem_init(semaphore, 0, 0)
    with takes(2, "sem_timedwait"):
        assert libc.sem_timedwait(semaphore, at(REALTIME, 2)) == -1
        assert ctypes.get_errno() == errno.ETIMEDOUT
    with takes(2, "sem_clockwait"):
        assert libc.sem_clockwait(semaphore, MONOTONIC, at(MONOTONIC, 2)) == -1
    with takes(3, "sem_post"), later(3, lambda: libc.sem_post(semaphore)):
        assert libc.sem_wait(semaphore) == 0
    mutex, condition = ctypes.create_string_buffer(40), ctypes.create_string_buffer(48)
    libc.pthread_mutex_lock(mutex)
    with takes(2, "pthread_cond_timedwait"):
        assert libc.pthread_cond_timedwait(condition, mutex, at(REALTIME, 2)) == errno.ETIMEDOUT
    with takes(2, "pthread_cond_clockwait"):
        assert libc.pthread_cond_clockwait(condition, mutex, MONOTONIC, at(MONOTONIC, 2)) == errno.ETIMEDOUT
    with takes(4, "pthread_cond_signal"), later(4, lambda: libc.pthread_cond_signal(condition)):
        assert libc.pthread_cond_timedwait(condition, mutex, at(REALTIME, 50)) == 0
    with takes(3, "pthread_mutex_timedlock"), later(0, lambda: None):
        results: list[int] = []
        with later(0, lambda: results.append(libc.pthread_mutex_timedlock(mutex, at(REALTIME, 3)))):
            pass
        assert results == [errno.ETIMEDOUT]
    with takes(2, "pthread_mutex_lock"):
        thread = threading.Thread(
            target=lambda: (libc.pthread_mutex_lock(mutex), libc.pthread_mutex_unlock(mutex))
        )
        thread.start()
        time.sleep(2)
        libc.pthread_mutex_unlock(mutex)
        thread.join()
    lock = ctypes.create_string_buffer(56)
    libc.pthread_rwlock_wrlock(lock)
    with takes(2, "pthread_rwlock_timedrdlock", 2e-3), later(0, lambda: None):
        results = []
        with later(0, lambda: results.append(libc.pthread_rwlock_timedrdlock(lock, at(REALTIME, 2)))):
            pass
        assert results == [errno.ETIMEDOUT]
    with takes(2, "pthread_rwlock_rdlock"):
        thread = threading.Thread(target=libc.pthread_rwlock_rdlock, args=(lock,))
        thread.start()
        time.sleep(2)
        libc.pthread_rwlock_unlock(lock)
        thread.join()


FUTEX, WAIT, WAKE, PRIVATE, BITSET = 202, 0, 1, 128, 9


def futexes() -> None:
    word = ctypes.c_uint32(0)
    address = ctypes.byref(word)
    for flag, name in ((PRIVATE, "private"), (0, "shared")):
        with takes(2, f"futex, {name}"):
            assert libc.syscall(FUTEX, address, WAIT | flag, 0, spec(2)) == -1
            assert ctypes.get_errno() == errno.ETIMEDOUT
        with takes(2, f"futex until, {name}"):
            libc.syscall(
                FUTEX, address, BITSET | flag, 0, at(MONOTONIC, 2), None, ctypes.c_uint32(0xFFFFFFFF)
            )
        with (
            takes(3, f"futex wake, {name}"),
            later(3, lambda f=flag: libc.syscall(FUTEX, address, WAKE | f, 1)),
        ):
            assert libc.syscall(FUTEX, address, WAIT | flag, 0, spec(20)) == 0


def timers() -> None:
    timer = libc.timerfd_create(MONOTONIC, 0)
    setting = (timespec * 2)(timespec(2, 0), timespec(3, 0))  # every 2 s, first after 3
    libc.timerfd_settime(timer, 0, setting, None)
    with takes(5, "timerfd"):
        for _ in range(2):
            os.read(timer, 8)
    libc.timerfd_settime(timer, 0, (timespec * 2)(), None)
    os.close(timer)
    with takes(4, "alarm"):
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 4)
        signal.pause()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    with takes(2, "sigtimedwait"):
        assert signal.sigtimedwait([signal.SIGUSR1], 2) is None
    with takes(3, "a signal"), later(3, lambda: os.kill(os.getpid(), signal.SIGUSR1)):
        assert signal.sigtimedwait([signal.SIGUSR1], 20) is not None


def children() -> None:
    with takes(6, "wait", 1e-3):
        subprocess.run(["sleep", "6"], check=True)
    with takes(3, "a killed child", 1e-2), suppress(subprocess.TimeoutExpired):
        subprocess.run(["sleep", "60"], timeout=3)
    with takes(2, "system", 1e-3):
        assert os.system("sleep 2") == 0
    with takes(2, "popen", 1e-3), os.popen("sleep 2; echo done") as pipe:
        assert pipe.read() == "done\n"


def main() -> None:
    for part in (sleeps, descriptors, objects, futexes, timers, children):
        part()
    print("ok")


if __name__ == "__main__":
    main()
