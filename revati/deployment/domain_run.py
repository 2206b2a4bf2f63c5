"""Commands side by side in one virtual-time domain, until the last of them ends."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Any

from revati.deployment.other_environment import engines_of, import_from
from revati.deployment.wire import TrialRequest, TrialResult
from revati.engines.emulation import Emulation
from revati.engines.warm import engine_module
from revati.environments import interpreter
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


class Commands:
    """Programs that run side by side in a domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._running: list[tuple[subprocess.Popen[Any], str]] = []  # with what they are called

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None
    ) -> subprocess.Popen[Any]:
        """Start a command; raises Failure if there is no such program."""
        name = " ".join(words[:3])
        try:
            process = self._domain.start(list(words), env=environment, stdout=output, stderr=output)
        except OSError as error:
            raise Failure(f"cannot start '{name}': {error.strerror}") from None
        self._running.append((process, name))
        return process

    def wait_for(self, awaited: subprocess.Popen[Any]) -> int:
        """The exit status of a command.

        Raises:
            Failure: another command or any process failed meanwhile, or virtual time got stuck.
        """
        while True:
            if reason := self._domain.ended:
                raise Failure(reason)
            for process, name in self._running:
                status = process.poll()
                if status is None or (status == 0 and process is not awaited):
                    continue
                if status < 0:
                    raise Failure(self._diagnosis() or f"'{name}' was ended by {_name(status)}")
                if process is not awaited:
                    raise Failure(f"'{name}' failed with exit status {status}")
                self._forget(process)
                return status
            time.sleep(_POLL_S)

    def end_all(self) -> None:
        """`end` for all commands, with time for those who clean up after them."""
        self.end(*(process for process, _ in self._running))
        time.sleep(_CLEAN_UP_S)

    def end(self, *ending: subprocess.Popen[Any]) -> None:
        """Ask commands to end, and wait for a while until they have."""
        for process in ending:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _GRACE_S
        while any(process.poll() is None for process in ending):
            if self._domain.ended or time.monotonic() > deadline:
                return
            time.sleep(_POLL_S)
        for process in ending:
            self._forget(process)

    def _forget(self, process: subprocess.Popen[Any]) -> None:
        self._running = [one for one in self._running if one[0] is not process]

    def _diagnosis(self) -> str | None:
        deadline = time.monotonic() + _DIAGNOSIS_S
        while self._domain.ended is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return self._domain.ended


def run_load_generator(request: TrialRequest, run: Callable[[str, str], int]) -> TrialResult:
    """What the load generator (`revati.deployment.load`) says of a trial.

    Args:
        run: runs it with these two arguments, and returns its exit status.

    Raises:
        Failure: it said nothing.
    """
    request_path, result_path = request.out_dir / "request.json", request.out_dir / "result.json"
    request_path.write_bytes(request.to_line())
    try:
        status = run(str(request_path), str(result_path))
        if not result_path.exists():
            raise Failure(f"the load generator ended with status {status}")
        return TrialResult.from_line(result_path.read_bytes())
    finally:
        for path in (request_path, result_path):
            path.unlink(missing_ok=True)


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
    output = log.open("ab") if log else None
    try:
        with tempfile.TemporaryDirectory(prefix="revati-") as folder, open_domain(emulation.host) as domain:
            running = Commands(domain)
            for words in commands:
                full = _program_environment(words[0], {**environment, **emulation.to_environment()}, folder)
                last = running.start(words, full, output)
            status = running.wait_for(last)
            running.end_all()
            return status
    finally:
        if output:
            output.close()


def _program_environment(program: str, environment: Mapping[str, str], folder: str) -> Mapping[str, str]:
    full: dict[str, str] = {}
    for engine in engines_of(program):
        full |= engine_module(engine).served_environment()
        full |= environment
        import_from(full, interpreter(engine), Path(folder) / engine)
    full.pop("PYTHONDONTWRITEBYTECODE", None)  # doubles the import time of every start
    return full


def open_domain(host: HostSpec) -> Domain:
    """A domain, to be used in a ``with``, whose clock moves as the host's mode says.

    Raises:
        Failure: engines would not know that they are emulated.
    """
    if not entry_points(group=_PLUGIN_GROUP, name=_PLUGIN):
        raise Failure(
            "Revati's plug-in for vLLM is not installed; install the package, then run it from there"
        )
    if host.mode != "measured":
        return Domain.create()  # what no table knows costs nothing
    factor = HostTable.load(host.name).cpu_factor(probe_ns())
    return Domain.create(cpu_factor=factor, skew_us=_MEASURED_SKEW_US)


def _name(status: int) -> str:
    return signal.Signals(-status).name
