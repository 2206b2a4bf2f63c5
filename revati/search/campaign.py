"""A sweep without its machinery: which trial comes next, and what its end means for the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from revati.search.ledger import Ledger
from revati.search.objective import Objective
from revati.search.plan import EngineQueue
from revati.search.problem import Problem
from revati.search.proposers import Outcome, Proposer
from revati.search.space import Point
from revati.search.trial import TrialOutput
from revati.spec import DeploymentSpec

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """A point on its way through the sweep."""

    trial_id: str
    point: Point
    spec: DeploymentSpec


class Campaign:
    """Hands out trials until the asked number of distinct configurations is in the ledger.

    Args:
        ledger: trials of an interrupted run count, and the proposer learns of them.
        num_trials: rows that the ledger shall have in the end; None: as many as the proposer has.
        batch: points proposed at a time, so that those of one engine can be put next to each other.
        on_finish: called with each new row, after it is in the ledger.
        on_engine: called before the first trial of each engine that has to be started.
    """

    def __init__(
        self,
        problem: Problem,
        objective: Objective,
        proposer: Proposer,
        ledger: Ledger,
        *,
        num_trials: int | None,
        batch: int = 8,
        on_finish: Callable[[Row], None] = lambda row: None,
        on_engine: Callable[[DeploymentSpec], None] = lambda spec: None,
    ) -> None:
        self._problem = problem
        self._objective = objective
        self._proposer = proposer
        self._ledger = ledger
        self._num_trials = num_trials
        self._batch = batch
        self._on_finish = on_finish
        self._on_engine = on_engine
        self._engines: set[str] = set()
        self._queue: EngineQueue[Trial] = EngineQueue()
        self._running: dict[str, Trial] = {}
        self._exhausted = False
        self._next_id = 1 + max((int(row["trial_id"]) for row in ledger.rows), default=-1)
        for point, row in zip(ledger.points, ledger.rows, strict=True):
            proposer.tell(point, self._outcome(row))

    @property
    def finished(self) -> bool:
        return not self._running and not len(self._queue) and (self._exhausted or self._to_propose() == 0)

    def has_work(self) -> bool:
        """Whether a trial is waiting to be run, after proposing some if there are none."""
        if not len(self._queue):
            self._propose()
        return len(self._queue) > 0

    def next(self) -> Trial | None:
        """The next trial to run; None when all are running or done."""
        trial = self._queue.take() if self.has_work() else None
        if trial is not None:
            self._running[trial.trial_id] = trial
            key = trial.spec.engine_key()
            if key not in self._engines:
                self._engines.add(key)
                self._on_engine(trial.spec)
        return trial

    def finish(self, trial_id: str, output: TrialOutput) -> None:
        """Enter what came of a running trial into the ledger and tell the proposer."""
        trial = self._running.pop(trial_id)
        self._queue.release(trial.spec.engine_key())
        self._record(trial, output)

    def _to_propose(self) -> int:
        if self._num_trials is None:
            return self._batch
        return max(0, self._num_trials - len(self._ledger.rows) - len(self._running) - len(self._queue))

    def _propose(self) -> None:
        while not len(self._queue) and not self._exhausted:
            count = min(self._batch, self._to_propose())
            if count == 0:
                return
            points = self._proposer.propose(count)
            self._exhausted = not points
            for point in points:
                trial = Trial(f"{self._next_id:04d}", point, self._problem.spec(point))
                self._next_id += 1
                reason = self._problem.over_budget(trial.spec)
                if reason:
                    self._record(trial, TrialOutput("infeasible", reason))
                else:
                    self._queue.add([(trial.spec.engine_key(), trial)])

    def _record(self, trial: Trial, output: TrialOutput) -> None:
        row = self._row(trial, output)
        self._ledger.append(trial.point, row)
        self._proposer.tell(trial.point, self._outcome(row))
        self._on_finish(row)

    def _row(self, trial: Trial, output: TrialOutput) -> Row:
        spec = trial.spec
        row: Row = {
            "trial_id": trial.trial_id,
            "engine": spec.engine,
            "model": spec.model.name,
            "gpu": spec.gpu,
            "num_gpus": spec.num_gpus,
            "tensor_parallel_size": spec.tensor_parallel_size,
            "pipeline_parallel_size": spec.pipeline_parallel_size,
            "replicas": spec.replicas,
            "routing": spec.routing,
            **spec.engine_args,
            **output.columns(),
        }
        row["slo_met"] = output.status == "ok" and self._objective.meets_slo(row)
        return row

    def _outcome(self, row: Row) -> Outcome:
        if row["status"] != "ok":
            return Outcome(None, ())
        return Outcome(tuple(self._objective.values(row)), tuple(self._objective.violations(row).values()))
