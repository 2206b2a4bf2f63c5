"""Python's own ways to wait, each for its virtual time: ``python_waits.py PART``; prints "ok"."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection


@contextmanager
def takes(seconds: float, tolerance_s: float = 1e-3) -> Iterator[None]:
    begin = time.time(), time.monotonic()
    yield
    for took_s in (time.time() - begin[0], time.monotonic() - begin[1]):
        assert abs(took_s - seconds) < tolerance_s, f"{took_s} s instead of {seconds}"


def threads() -> None:
    messages: queue.Queue[float] = queue.Queue()

    def produce() -> None:
        for _ in range(5):
            time.sleep(10)
            messages.put(time.time())

    with takes(50):
        producer = threading.Thread(target=produce)
        producer.start()
        for _ in range(5):
            assert abs(messages.get() - time.time()) < 1e-3
        producer.join()
    with takes(7), suppress(queue.Empty):
        messages.get(timeout=7)
    lock = threading.Lock()
    with takes(5), lock:
        assert not lock.acquire(timeout=5)
    with takes(3):
        assert not threading.Event().wait(3)


async def talk(delay_s: float) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await asyncio.sleep(delay_s)
            writer.write(line)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def ask(pause_s: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"hello\n")
            await reader.readline()
            await asyncio.sleep(pause_s)
        writer.close()

    await asyncio.gather(*[ask(pause_s) for pause_s in range(10)])
    server.close()


async def coroutines() -> None:
    with takes(3 * 5 + 3 * 9, 0.02):  # epoll counts ms
        await talk(5)
    with takes(1000, 0.01):
        await asyncio.to_thread(time.sleep, 1000)
    with takes(100, 0.01):
        process = await asyncio.create_subprocess_exec("sleep", "100")
        await process.wait()


def with_uvloop() -> None:
    import uvloop

    uvloop.run(coroutines())


def work(inbox: Connection, outbox: multiprocessing.Queue[float]) -> None:
    for _ in range(3):
        time.sleep(7)
        outbox.put(time.time())
    inbox.recv()
    inbox.send(time.time())


def processes(method: str) -> None:
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    results = context.Queue()
    child = context.Process(target=work, args=(theirs, results))
    with takes(31, 0.01):
        child.start()
        for _ in range(3):
            assert abs(results.get() - time.time()) < 1e-3
        time.sleep(10)
        ours.send(1)
        assert abs(ours.recv() - time.time()) < 1e-3
        child.join()


def subprocesses() -> None:
    with takes(50):
        subprocess.run(["sleep", "50"], check=True)
    with takes(30, 0.1), suppress(subprocess.TimeoutExpired):
        subprocess.run(["sleep", "1000"], timeout=30)
    with takes(5):
        assert os.system("sleep 3 & sleep 5; wait") == 0
    # A program starts beside a long timer: no time passes before it has joined.
    timer = threading.Thread(target=time.sleep, args=(10_000,), daemon=True)
    timer.start()
    with takes(0), os.popen(f"{sys.executable} -c 'import time; print(time.time())'") as pipe:
        assert abs(float(pipe.read()) - time.time()) < 1e-3


PARTS = {
    "threads": threads,
    "asyncio": lambda: asyncio.run(coroutines()),
    "uvloop": with_uvloop,
    "fork": lambda: processes("fork"),
    "spawn": lambda: processes("spawn"),
    "subprocesses": subprocesses,
}

if __name__ == "__main__":
    PARTS[sys.argv[1]]()
    print("ok")
