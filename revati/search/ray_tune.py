"""Run a campaign's trials with Ray Tune: reused actors, a leased CPU each, nothing left behind."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from revati.deployment.leftovers import end_marked, no_leftovers
from revati.deployment.metrics import Slo
from revati.search.campaign import Campaign
from revati.search.runner import connect, open_server
from revati.search.signals import handle_signals, interrupt, interruptible
from revati.search.trial import TrialOutput, run_trial
from revati.spec import DeploymentSpec
from revati.workload import Workload

# An emulated engine, and the Ray worker that waits for a trial.
_ENGINE_BYTES, _WORKER_BYTES = 3 << 29, 1 << 29
# The engine's template, Ray's own processes and this one.
_BASE_BYTES = 5 << 30

_START_ATTEMPTS = 4

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # The ledger is the state; Tune's own snapshots would only cost time.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # Ours raises KeyboardInterrupt, so that everything that is open gets closed.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@dataclass(frozen=True, slots=True)
class TrialSetup:
    """What all trials of a sweep share; goes to the workers as a path and JSON-able values."""

    runner: str  # module with TemplateServer and TemplateClient
    gpu: str
    engines: tuple[str, ...]
    workload_path: Path
    workload_name: str
    request_slo: Slo
    folder: Path  # of the sweep's output


def default_concurrency(replicas: int = 1) -> int:
    """Trials with so many replicas at a time that this machine's cores and available memory can carry."""
    cores = len(os.sched_getaffinity(0))
    trial_bytes = replicas * _ENGINE_BYTES + _WORKER_BYTES
    return max(1, min(cores, (_available_bytes() - _BASE_BYTES) // trial_bytes))


def _available_bytes() -> int:
    """Memory that can be had without swapping, the page cache's included."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def run_campaign(
    campaign: Campaign, setup: TrialSetup, *, concurrency: int, dashboard: bool, say: Callable[[str], None]
) -> None:
    """Run the campaign to its end; all processes and files of the session are gone afterwards.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM, after cleaning up.
    """
    os.environ.update(_QUIET)
    # A token of this sweep's own: by default Ray would leave one in the home folder.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with (
        interruptible(),
        _session_dir() as session,
        open_server(setup.runner, setup.folder / "logs", setup.gpu, setup.engines) as server,
        no_leftovers(str(session)),
        _ray(session, concurrency, dashboard, say),
    ):
        _fit(campaign, setup, server.socket_path, session, concurrency)


def _fit(campaign: Campaign, setup: TrialSetup, socket_path: Path, session: Path, concurrency: int) -> None:
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it misses the result files it need not write
    fixed = {
        "runner": setup.runner,
        "socket_path": str(socket_path),
        "workload_path": str(setup.workload_path),
        "workload_name": setup.workload_name,
        "request_slo": asdict(setup.request_slo),
        "folder": str(setup.folder),
    }
    tune.run(
        _trainable(),
        name="sweep",
        config={},
        search_alg=_search_algorithm(campaign, fixed),
        num_samples=1 << 30,
        max_concurrent_trials=concurrency,
        reuse_actors=True,
        resources_per_trial={"cpu": 1},
        storage_path=str(session / "tune"),
        trial_dirname_creator=lambda trial: str(trial.trial_id),
        verbose=0,
        progress_reporter=_silent_reporter(),
        raise_on_failed_trial=False,
        log_to_file=False,
    )


def _trainable() -> Any:
    from ray import tune

    class EmulatedTrial(tune.Trainable):  # type: ignore[misc]
        """One actor runs many trials, one after the other; a step is a whole trial."""

        def setup(self, config: dict[str, Any]) -> None:
            self.client = connect(config["runner"], Path(config["socket_path"]))
            self.workload = Workload.from_trace(Path(config["workload_path"]), config["workload_name"])
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

        def step(self) -> dict[str, Any]:
            config = self.config
            output = run_trial(
                self.client,
                DeploymentSpec.from_json(config["spec"]),
                self.workload,
                Slo(**config["request_slo"]),
                config["trial"],
                Path(config["folder"]),
            )
            return {"output": json.dumps(asdict(output)), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """A trial is too short to be worth one."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing was saved."""

    return EmulatedTrial


def _search_algorithm(campaign: Campaign, fixed: dict[str, Any]) -> Any:
    from ray.tune.search import Searcher

    class CampaignSearch(Searcher):  # type: ignore[misc]
        """Hands Ray the campaign's trials, and the campaign what Ray reports."""

        def __init__(self) -> None:
            super().__init__(metric="output", mode="max")
            self._ours: dict[str, str] = {}  # Ray's trial id → the campaign's

        def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
            return True

        def suggest(self, trial_id: str) -> Any:
            trial = campaign.next()
            if trial is None:
                return Searcher.FINISHED if campaign.finished else None
            self._ours[trial_id] = trial.trial_id
            return {**fixed, "trial": trial.trial_id, "spec": trial.spec.to_json()}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            ours = self._ours.pop(trial_id, None)
            if ours is None:
                return
            if error or not result or "output" not in result:
                output = TrialOutput("failed", f"the trial's Ray worker died; see logs/{ours}")
            else:
                output = TrialOutput(**json.loads(result["output"]))
            campaign.finish(ours, output)

        def save_to_dir(self, *args: Any, **kwargs: Any) -> None:
            """The ledger is the state."""

        def save(self, checkpoint_path: str) -> None:
            """The ledger is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """The ledger is the state."""

    return CampaignSearch()


def _silent_reporter() -> Any:
    from ray.tune import ProgressReporter

    class Silent(ProgressReporter):  # type: ignore[misc]
        def should_report(self, trials: Any, done: bool = False) -> bool:
            return False

        def report(self, trials: Any, done: bool, *system_info: Any) -> None:
            """Our own progress lines say it."""

    return Silent()


@contextmanager
def _ray(session: Path, concurrency: int, dashboard: bool, say: Callable[[str], None]) -> Iterator[None]:
    import ray

    try:
        url = _start_ray(session, concurrency, dashboard, say)
        handle_signals(interrupt)  # Ray has put its own in their place
        if url:
            say(f"Ray dashboard: http://{url}, token {os.environ['RAY_AUTH_TOKEN']}")
        yield
    finally:
        # A second Ctrl-C must not leave half of it behind.
        handle_signals(signal.SIG_IGN)
        ray.shutdown()


def _start_ray(session: Path, concurrency: int, dashboard: bool, say: Callable[[str], None]) -> str:
    """Start Ray on this machine and return its dashboard's address, empty if it has none.

    Ray gives up when its processes need more than 30 s, which a busy machine takes; then it is tried again.
    """
    import ray

    for attempts_left in reversed(range(_START_ATTEMPTS)):
        try:
            context = ray.init(
                address="local",
                num_cpus=concurrency,
                num_gpus=0,
                include_dashboard=dashboard and find_spec("opencensus") is not None,
                object_store_memory=100 << 20,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                _temp_dir=str(session / f"ray{attempts_left}"),
            )
            return str(context.dashboard_url or "")
        except Exception as error:
            if not attempts_left or "timed out" not in str(error):
                raise
            say("Ray did not start within its 30 s, the machine is busy: trying again")
            ray.shutdown()
            end_marked(str(session))
    raise AssertionError("unreachable")


@contextmanager
def _session_dir() -> Iterator[Path]:
    # Ray puts Unix sockets below it, whose paths may have 107 characters at most.
    base = tempfile.gettempdir()
    session = Path(tempfile.mkdtemp(prefix="revati-", dir=base if len(base) <= 24 else "/tmp"))
    try:
        yield session
    finally:
        shutil.rmtree(session, ignore_errors=True)
