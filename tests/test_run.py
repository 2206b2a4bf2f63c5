"""The command line of ``python -m revati.run``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from revati.run import parse


def test_settings_and_commands() -> None:
    arguments = parse(
        ["num_gpus=2", "mode=free", "--", "vllm", "serve", "x", "--", "y", "--and", "client", "-v"]
    )
    assert arguments.num_gpus == 2
    assert arguments.emulation.gpu == "h200"
    assert arguments.emulation.host.mode == "free"
    assert arguments.commands == [["vllm", "serve", "x", "--", "y"], ["client", "-v"]]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["vllm", "serve"], "behind --"),
        (["--"], "empty command"),
        (["--", "a", "--and"], "empty command"),
        (["gpus=2", "--", "a"], "accepted: gpu, num_gpus, host, mode"),
        (["gpu=z80", "--", "a"], "known: a100, b200, h100, h200, l40s"),
        (["host=laptop", "--", "a"], "h200_xeon"),
        (["mode=fast", "--", "a"], "table, measured, free"),
        (["num_gpus=two", "--", "a"], "1 to 8"),
    ],
)
def test_errors_name_what_is_accepted(words: list[str], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse(words)


def test_cpu_time_is_real_and_the_time_of_day_virtual() -> None:
    program = (
        "import time; time.sleep(3600); "
        "print(time.monotonic() > 3600, 0 < time.thread_time() <= time.process_time() < 60)"
    )
    words = [sys.executable, "-m", "revati.run", "mode=free", "--", sys.executable, "-c", program]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.split() == ["True", "True"], run.stderr


def test_sockets_of_a_server_that_is_killed_go_with_the_run() -> None:
    server = "touch $VLLM_RPC_BASE_PATH/socket; echo $VLLM_RPC_BASE_PATH; kill -9 $$"
    words = [sys.executable, "-m", "revati.run", "mode=free", "--", "sh", "-c", server]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    folder = Path(run.stdout.strip())
    assert folder.is_absolute()
    assert not folder.exists()
