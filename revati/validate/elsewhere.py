"""What another machine with the same GPUs makes of a case: the same deployment under the same requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from revati.validate.errors import error_pct
from revati.validate.predictions import Prediction
from revati.validate.runs import Case


def measured_elsewhere(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """By name of a case, its like on other machines; only cases that were measured on several."""
    grouped: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        if case.machine:
            grouped.setdefault((case.configuration, case.requests_digest()), []).append(case)
    found = {
        case.name: [other for other in like if other.machine != case.machine]
        for like in grouped.values()
        for case in like
    }
    return {name: others for name, others in found.items() if others}


def other_machine_error_pct(case: Case, elsewhere: Mapping[str, Sequence[Case]], metric: str) -> float:
    """Error of what another machine measured, mean of absolutes; NaN where nothing was."""
    measured = [Prediction({metric: other.measured(metric)}) for other in elsewhere[case.name]]
    return sum(abs(error_pct(case, one, metric)) for one in measured) / len(measured)
