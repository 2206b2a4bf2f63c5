"""One trial: run the deployment, keep its requests, report what came of it. Runs in a Ray worker."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from revati.deployment.metrics import Slo, summarize
from revati.search.runner import Client
from revati.spec import DeploymentSpec
from revati.workload import Workload


@dataclass(frozen=True, slots=True)
class TrialOutput:
    """The part of a trial's row that is known only after it ran; JSON-serialisable."""

    status: str
    reason: str = ""
    kv_cache_blocks: int | None = None
    wall_s: float | None = None
    provenance: dict[str, float] | None = None
    metrics: dict[str, float] | None = None

    def columns(self) -> dict[str, Any]:
        content = asdict(self)
        parts = [content.pop(name) or {} for name in ("provenance", "metrics")]
        return {**content, **parts[0], **parts[1]}


def run_trial(
    client: Client, spec: DeploymentSpec, workload: Workload, slo: Slo, trial_id: str, folder: Path
) -> TrialOutput:
    """Run one deployment; its log goes to ``logs/<trial>/``, its requests to ``requests/<trial>.parquet``.

    Whatever goes wrong ends as a ``failed`` output with its reason: a sweep goes on.
    """
    logs = folder / "logs" / trial_id
    logs.mkdir(parents=True, exist_ok=True)
    try:
        result = client.run(spec, workload, logs)
        metrics: dict[str, float] | None = None
        if result.status == "ok":
            if result.requests_path is None:
                raise RuntimeError("the trial reported no requests")
            requests = folder / "requests" / f"{trial_id}.parquet"
            requests.parent.mkdir(exist_ok=True)
            Path(result.requests_path).replace(requests)
            metrics = summarize(pq.read_table(requests), spec.num_gpus, slo)
        return TrialOutput(
            status=result.status,
            reason=_one_line(result.reason),
            kv_cache_blocks=result.kv_cache_blocks or None,
            wall_s=result.wall_s,
            provenance=dict(result.provenance),
            metrics=metrics,
        )
    except Exception as error:
        (logs / "trial_error.txt").write_text(traceback.format_exc())
        return TrialOutput("failed", _one_line(f"{type(error).__name__}: {error}"))


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
