"""Commands side by side in one virtual-time domain, until the last of them ends."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Any

from revati.engines.emulation import Emulation
from revati.engines.warm import engine_module, engine_names
from revati.spec import HostSpec
from revati.virtual_time.domain import Domain
from revati.virtual_time.host_table import HostTable
from revati.virtual_time.speed import probe_ns

_PLUGIN_GROUP, _PLUGIN = "vllm.general_plugins", "revati_processes"
_POLL_S = 0.05
_DIAGNOSIS_S = 1.0  # within which the domain's monitor says more about a process that was killed
_MEASURED_SKEW_US = 100.0
_GRACE_S = 10.0  # for servers to end by themselves, so that they remove their shared memory
_CLEAN_UP_S = 1.0  # for Python's resource trackers, which outlive them


class Failure(Exception):
    """A deployment ended before its time; the message says why."""


def run_commands(
    commands: Sequence[Sequence[str]],
    emulation: Emulation,
    environment: Mapping[str, str],
    log: Path | None = None,
) -> int:
    """Run commands on one virtual clock until the last one ends, then end all their processes.

    Args:
        commands: words of each command.
        emulation: what they are emulated on.
        environment: theirs, with the GPU stand-ins preloaded; it has precedence over what engines need.
        log: takes their output; None: it goes where ours goes.

    Returns:
        The exit status of the last command.

    Raises:
        Failure: another command or any process of the deployment failed, or virtual time got stuck.
    """
    if not entry_points(group=_PLUGIN_GROUP, name=_PLUGIN):
        raise Failure(
            "Revati's plug-in for vLLM is not installed; install the package, then run it from there"
        )
    full: dict[str, str] = {}
    for engine in engine_names():
        full |= engine_module(engine).served_environment()
    full |= {**environment, **emulation.to_environment()}
    full.pop("PYTHONDONTWRITEBYTECODE", None)  # doubles the import time of every start
    output = log.open("ab") if log else None
    try:
        with _domain(emulation.host) as domain:
            running = [_start(domain, words, full, output) for words in commands]
            status = _wait(running, commands, domain)
            _ask_to_end(running, domain)
            return status
    finally:
        if output:
            output.close()


def _domain(host: HostSpec) -> Domain:
    if host.mode != "measured":
        return Domain.create()  # what no table knows costs nothing
    factor = HostTable.load(host.name).cpu_factor(probe_ns())
    return Domain.create(cpu_factor=factor, skew_us=_MEASURED_SKEW_US)


def _start(
    domain: Domain, words: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None
) -> subprocess.Popen[Any]:
    try:
        return domain.start(list(words), env=environment, stdout=output, stderr=output)
    except OSError as error:
        raise Failure(f"cannot start '{_short(words)}': {error.strerror}") from None


def _wait(running: Sequence[subprocess.Popen[Any]], commands: Sequence[Sequence[str]], domain: Domain) -> int:
    last = len(running) - 1
    while True:
        if reason := domain.ended:
            raise Failure(reason)
        for index, process in enumerate(running):
            status = process.poll()
            if status is None or (status == 0 and index != last):
                continue
            if status < 0:
                raise Failure(
                    _diagnosis(domain) or f"'{_short(commands[index])}' was ended by {_name(status)}"
                )
            if index != last:
                raise Failure(f"'{_short(commands[index])}' failed with exit status {status}")
            return status
        time.sleep(_POLL_S)


def _ask_to_end(running: Sequence[subprocess.Popen[Any]], domain: Domain) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _GRACE_S
    while any(process.poll() is None for process in running):
        if domain.ended or time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)
    time.sleep(_CLEAN_UP_S)


def _diagnosis(domain: Domain) -> str | None:
    deadline = time.monotonic() + _DIAGNOSIS_S
    while domain.ended is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return domain.ended


def _name(status: int) -> str:
    return signal.Signals(-status).name


def _short(command: Sequence[str]) -> str:
    return " ".join(command[:3])
