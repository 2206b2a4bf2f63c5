"""Binding to the launcher's side of ``librevati_domain.so``: create, attach to and look after a domain."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from revati.interception.preload import LIBRARY_DIR

DOMAIN_LIBRARY = LIBRARY_DIR / "librevati_domain.so"
_REASON_BYTES, _DESCRIPTION_BYTES, _MAX_MEMBERS, _COUNTERS = 512, 1 << 20, 4096, 9


@dataclass(frozen=True, slots=True)
class DomainCounters:
    """What a domain has done so far."""

    grants: int  # of the run token
    self_grants: int  # grants that left the token where it was, the cheapest ones not counted in `grants`
    jumps: int
    scans: int  # searches for messages in flight
    scanned: int  # threads looked at by them
    retries: int  # jumps put off by something in flight
    sends: int
    preemptions: int  # tokens taken from threads that waited or computed outside the hooks
    settle_ns: int  # real time spent on waiting for threads to fall asleep


class DomainLibrary:
    """One attached domain; a process attaches to one at a time.

    Raises:
        FileNotFoundError: if the native library was not built with the package.
    """

    def __init__(self) -> None:
        if not DOMAIN_LIBRARY.is_file():
            raise FileNotFoundError(f"{DOMAIN_LIBRARY} does not exist: reinstall revati")
        self._lib = lib = ctypes.CDLL(str(DOMAIN_LIBRARY))
        lib.revati_domain_create.argtypes = [
            ctypes.c_char_p,
            ctypes.c_int64,
            ctypes.c_double,
            ctypes.c_char_p,
            ctypes.c_char_p,
        ]
        lib.revati_domain_watch.argtypes = [ctypes.c_int64, ctypes.c_char_p]
        lib.revati_domain_now.restype = ctypes.c_int64

    def create(
        self, path: Path, skew_ns: int, cpu_factor: float, real_time_threads: str, idle_libraries: str
    ) -> None:
        """Make the shared memory of a new domain; `Domain.create` explains the arguments."""
        error = self._lib.revati_domain_create(
            os.fsencode(path), skew_ns, cpu_factor, real_time_threads.encode(), idle_libraries.encode()
        )
        if error:
            raise OSError(error, os.strerror(error), str(path))

    def attach(self, path: Path) -> None:
        error = self._lib.revati_domain_attach(os.fsencode(path))
        if error:
            raise OSError(error, os.strerror(error), str(path))

    def reserve(self) -> int:
        """A slot for the next program that this process starts; -1 if the domain is full."""
        return int(self._lib.revati_domain_reserve())

    def watch(self, wait_ns: int) -> str:
        """Look after the domain for so long, or until a process dies; the monitor does nothing else.

        Returns:
            Which process was killed or crashed; empty if none was.
        """
        reason = ctypes.create_string_buffer(_REASON_BYTES)
        self._lib.revati_domain_watch(wait_ns, reason)
        return reason.value.decode(errors="replace")

    def stuck(self) -> bool:
        """Every thread waits for something without a deadline."""
        return bool(self._lib.revati_domain_stuck())

    def end(self, reason: str) -> None:
        self._lib.revati_domain_end(reason.encode()[: _REASON_BYTES - 1])

    def ended(self) -> str | None:
        """Why the domain has ended, or None while it lives."""
        reason = ctypes.create_string_buffer(_REASON_BYTES)
        return reason.value.decode(errors="replace") if self._lib.revati_domain_ended(reason) else None

    def now_ns(self) -> int:
        return int(self._lib.revati_domain_now())

    def describe(self) -> str:
        text = ctypes.create_string_buffer(_DESCRIPTION_BYTES)
        self._lib.revati_domain_describe(text, _DESCRIPTION_BYTES)
        return text.value.decode(errors="replace")

    def members(self) -> list[int]:
        pids = (ctypes.c_int * _MAX_MEMBERS)()
        return list(pids[: self._lib.revati_domain_members(pids, _MAX_MEMBERS)])

    def remove_files(self) -> None:
        """Remove the files in shared memory that members created and have not removed."""
        self._lib.revati_domain_remove_files()

    def counters(self) -> DomainCounters:
        values = (ctypes.c_int64 * _COUNTERS)()
        self._lib.revati_domain_counters(values)
        return DomainCounters(*values)
