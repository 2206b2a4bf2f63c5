"""Programs in a domain of virtual time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from revati.virtual_time.domain import Domain

PROGRAMS = Path(__file__).parent / "programs"


class Members:
    """Starts Python programs in a domain and collects what they print."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def start(self, code: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "text": True, **options}
        return self.domain.start([sys.executable, "-u", "-c", code], **options)

    def run(self, *programs: str, timeout_s: float = 30) -> list[str]:
        """What each program printed, when all have ended well."""
        processes = [self.start(code) for code in programs]
        assert self.domain.wait(processes, timeout_s) == [0] * len(programs)
        return [process.stdout.read().strip() for process in processes if process.stdout]


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout
    return process.stdout.readline().rstrip("\n")


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Write a line into its input."""
    assert process.stdin
    process.stdin.write(line + "\n")
    process.stdin.flush()
