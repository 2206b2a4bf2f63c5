"""``report.html``: one page that needs nothing but a browser."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from revati.deployment.metrics import METRIC_COLUMNS
from revati.search.objective import Objective, natural_direction
from revati.timing.estimate import PROVENANCES

_DATA_MARK = "/*DATA*/null"


def report_html(
    rows: Sequence[Mapping[str, Any]],
    *,
    objective: Objective,
    knobs: Sequence[str],
    front: Iterable[str],
    recommended: str | None,
    script: str | None,
    title: str,
    facts: Mapping[str, str],
) -> str:
    """The page with all trials in it.

    Args:
        rows: as in ``trials.parquet``.
        knobs: those that were searched over, in order.
        front: ids of the Pareto-optimal trials.
        recommended: id of the recommended trial, None if none meets the SLO.
        script: its launch script.
    """
    directions = {name: natural_direction(name) for name in METRIC_COLUMNS}
    directions |= dict(zip(objective.metrics, objective.directions, strict=True))
    data = {
        "title": title,
        "facts": dict(facts),
        "knobs": list(knobs),
        "metrics": directions,
        "objectives": list(objective.metrics),
        "slo": objective.slo,
        "front": sorted(front),
        "recommended": recommended,
        "script": script,
        "provenances": list(PROVENANCES),
        "rows": [{name: _json_value(value) for name, value in row.items()} for row in rows],
    }
    # "</script>" inside a value must not end the page's script.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    template = resources.files("revati.search").joinpath("report_template.html").read_text("utf-8")
    return template.replace(_DATA_MARK, text)


def _json_value(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: what is not a number is unknown."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
