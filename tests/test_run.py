"""The command line of ``python -m revati.run``."""

from __future__ import annotations

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
