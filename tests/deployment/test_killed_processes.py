"""Whichever process of a deployment is killed, all of it ends soon, with a reason and without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from serving import TINY, commands, living

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(900)]

SHARED_MEMORY = Path("/dev/shm")
Victim = Callable[[str], bool]
VICTIMS: dict[str, Victim] = {
    "server": lambda command: "vllm serve" in command,
    "engine core": lambda command: "EngineCore" in command,
    "worker": lambda command: "Worker_PP1" in command,
    "client": lambda command: "bench serve" in command,
    "monitor": lambda command: "domain_monitor" in command,
    "resource tracker": lambda command: "resource_tracker" in command,
}


def find(parent: psutil.Process, is_victim: Victim, timeout_s: float = 300) -> psutil.Process:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for process in parent.children(recursive=True):
            try:
                if is_victim(" ".join(process.cmdline())):
                    return process
            except psutil.Error:
                continue
        time.sleep(0.2)
    raise TimeoutError("no such process")


@pytest.mark.parametrize("name", VICTIMS)
def test_a_killed_process_ends_the_deployment(name: str, tmp_path: Path) -> None:
    before = set(SHARED_MEMORY.iterdir())
    client = ["--dataset-name", "random", "--num-prompts", "100"]
    words, _ = commands(tmp_path, TINY, ["--pipeline-parallel-size", "2"], client)
    run = [sys.executable, "-m", "revati.run", "num_gpus=2", "--", *words]
    log = tmp_path / "log"
    with log.open("wb") as file, subprocess.Popen(run, stdout=file, stderr=file) as launcher:
        family = psutil.Process(launcher.pid)
        find(family, VICTIMS["worker"])  # all are up
        time.sleep(2)
        members = family.children(recursive=True)
        os.kill(find(family, VICTIMS[name]).pid, signal.SIGKILL)
        killed_at = time.monotonic()
        launcher.wait(timeout=60)
        assert time.monotonic() - killed_at < 5
    assert launcher.returncode == 1
    (reason,) = [line for line in log.read_text().splitlines() if line.startswith("revati.run: ")]
    assert "signal 9" in reason or "has gone" in reason, reason
    assert not living(members)
    left = {path.name for path in set(SHARED_MEMORY.iterdir()) - before}
    ours = (f"revati-domain-{launcher.pid}-", "psm_", "sem.mp-")
    assert not [name for name in left if name.startswith(ours)]
