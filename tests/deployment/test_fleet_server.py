"""Which launcher of servers a trial is handed to, with launchers that only pretend."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from revati.deployment import processes
from revati.deployment.fleet_server import FleetServer
from revati.deployment.wire import TrialResult
from revati.spec import DeploymentSpec, HostSpec
from revati.workload import FixedLengths, Workload
from tests.doubles.fleet import DIES, LAST, SLOW
from tests.search.problems import MODEL

WORKLOAD = Workload.from_offline("w", num_requests=1, lengths=FixedLengths(1, 1))


class Trials:
    def __init__(self, client: processes.TemplateClient, folder: Path) -> None:
        self._client, self._folder = client, folder

    def run(self, **changes: Any) -> TrialResult:
        fields = {"replicas": 2, "routing": "random", **changes}
        spec = DeploymentSpec("vllm", MODEL, "h200", HostSpec("free", "free"), **fields)
        return self._client.run(spec, WORKLOAD, self._folder / "trial")


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trials]:
    monkeypatch.setattr("revati.deployment.fleet_server.provision_missing", lambda names: None)
    with FleetServer(tmp_path / "socket", tmp_path / "logs", launcher="tests.doubles.fleet") as server:
        yield Trials(processes.TemplateClient(server.socket_path), tmp_path)
    assert not psutil.Process().children()


def test_servers_stay_for_trials_of_their_kind(trials: Trials) -> None:
    first = trials.run()
    assert first.status == "ok"
    assert first.wall_s > 0
    others = [trials.run(replicas=4, routing="cache_aware"), trials.run(routing="round_robin")]
    assert {other.reason for other in others} == {first.reason}


@pytest.mark.parametrize(
    "change",
    [{"engine_args": {"max_num_seqs": 8}}, {"tensor_parallel_size": 2}, {"routing": "data_parallel"}],
)
def test_another_kind_takes_their_place(trials: Trials, change: dict[str, Any]) -> None:
    first, other = trials.run(), trials.run(**change)
    assert other.reason != first.reason
    assert not psutil.pid_exists(int(first.reason))
    assert psutil.pid_exists(int(other.reason))


def test_after_a_failure_servers_are_started_anew(trials: Trials) -> None:
    failed = trials.run(seed=LAST)
    assert failed.status == "failed"
    assert trials.run().reason not in ("", failed.reason)


def test_a_launcher_that_dies_is_tried_once_more(trials: Trials) -> None:
    result = trials.run(seed=DIES)
    assert (result.status, "launcher died" in result.reason) == ("failed", True)
    assert trials.run().status == "ok"


def test_an_end_in_the_middle_of_a_trial_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revati.deployment.fleet_server.provision_missing", lambda names: None)
    results: list[TrialResult] = []
    with FleetServer(tmp_path / "socket", tmp_path / "logs", launcher="tests.doubles.fleet") as server:
        trials = Trials(processes.TemplateClient(server.socket_path), tmp_path)
        thread = threading.Thread(target=lambda: results.append(trials.run(seed=SLOW)))
        thread.start()
        while not psutil.Process().children():
            time.sleep(0.05)
        time.sleep(0.3)
        begin_s = time.monotonic()
    assert time.monotonic() - begin_s < 5
    thread.join(5)
    assert [result.status for result in results] == ["failed"]
    assert not psutil.Process().children()
