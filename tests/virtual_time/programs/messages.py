"""Processes that send each other messages at random times, over pipes, datagrams and TCP.

    messages.py PROCESSES MESSAGES SEED

A message holds its send time. Receivers measure how long it took; the parent prints, as JSON, how many came
before they were sent, and how late the latest was. In virtual time every message takes none.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import socket
import struct
import sys
import time

MESSAGE = struct.Struct("<qi")  # send time in ns, sender; padded to RECORD bytes
RECORD = 32
MEAN_GAP_NS = 2_000_000


class Peer:
    """One process; ``outlets[i]`` are functions that send to process i by different ways."""

    def __init__(self, index: int, seed: int, inlets: list[object], outlets: list[list[object]]) -> None:
        self.index, self.random = index, random.Random(seed * 1000 + index)
        self.inlets, self.outlets = inlets, outlets
        self.received = self.early = self.worst_ns = 0

    def send(self) -> None:
        peer = self.random.randrange(len(self.outlets) - 1)
        peer += peer >= self.index
        outlet = self.random.choice(self.outlets[peer])
        data = MESSAGE.pack(time.monotonic_ns(), self.index).ljust(RECORD, b"\0")
        if isinstance(outlet, int):
            os.write(outlet, data)
        else:
            outlet.send(data)

    def receive(self, inlet: object) -> bool:
        data = os.read(inlet, RECORD) if isinstance(inlet, int) else inlet.recv(RECORD)
        if not data:
            return False
        sent_ns, _ = MESSAGE.unpack_from(data)
        late_ns = time.monotonic_ns() - sent_ns
        self.received += 1
        self.early += late_ns < 0
        self.worst_ns = max(self.worst_ns, late_ns)
        return True

    def run(self, messages: int, begin_ns: int) -> None:
        selector = selectors.DefaultSelector()
        for inlet in self.inlets:
            selector.register(inlet, selectors.EVENT_READ)
        due_ns = begin_ns + int(self.random.expovariate(1 / MEAN_GAP_NS))
        last_ns = None
        while last_ns is None or time.monotonic_ns() < last_ns:
            target_ns = due_ns if last_ns is None else last_ns
            timeout_s = max(0.0, (target_ns - time.monotonic_ns()) * 1e-9)
            for key, _ in selector.select(timeout_s):
                if not self.receive(key.fileobj):
                    selector.unregister(key.fileobj)
            if last_ns is None and time.monotonic_ns() >= due_ns:
                self.send()
                messages -= 1
                due_ns += int(self.random.expovariate(1 / MEAN_GAP_NS))
                if messages == 0:
                    last_ns = time.monotonic_ns() + 60_000_000_000


def connect(processes: int) -> tuple[list[list[object]], list[list[list[object]]]]:
    """Inlets of each process; outlets[from][to]."""
    inlets: list[list[object]] = [[] for _ in range(processes)]
    outlets: list[list[list[object]]] = [[[] for _ in range(processes)] for _ in range(processes)]
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    for receiver in range(processes):
        read_end, write_end = os.pipe()
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", 0))
        inlets[receiver] += [read_end, datagrams]
        for sender in range(processes):
            if sender == receiver:
                continue
            to_datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            to_datagrams.connect(datagrams.getsockname())
            stream = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
            inlets[receiver].append(accepted)
            outlets[sender][receiver] += [write_end, to_datagrams, stream]
    return inlets, outlets


def main() -> None:
    processes, messages, seed = (int(argument) for argument in sys.argv[1:])
    inlets, outlets = connect(processes)
    begin_ns = time.monotonic_ns() + 100_000_000
    result_read, result_write = os.pipe()
    for index in range(processes):
        if os.fork() == 0:
            peer = Peer(index, seed, inlets[index], outlets[index])
            peer.run(messages // processes, begin_ns)
            os.write(result_write, struct.pack("<qqq", peer.received, peer.early, peer.worst_ns))
            os._exit(0)
    results = [struct.unpack("<qqq", os.read(result_read, 24)) for _ in range(processes)]
    for _ in range(processes):
        os.wait()
    received, early, worst_ns = zip(*results, strict=True)
    print(json.dumps({"received": sum(received), "early": sum(early), "worst_late_us": max(worst_ns) / 1e3}))


if __name__ == "__main__":
    main()
