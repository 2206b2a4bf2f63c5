"""What the page on unseen machines says: how long their hosts take, and what the others' median says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from revati.validate.markdown import number, table

_INTRODUCTION = """# Hosts of machines that nobody has seen

How wrong `rented_xeon`, the host that a sweep assumes, is for a machine: each machine beside the median of
all *others*, from step logs alone. *Slowdown* is relative to the calibrated host at slowdown 1; the other
columns are the error in percent of the host's time for an engine step (schedule, execute, sample and update;
16 requests, 32 layers) by kind of step, of one worker or of tensor-parallel ranks (*ranks*). What that makes
of latencies is row `default_host` of [SUMMARY.md](SUMMARY.md). `python -m revati.validate.machines` writes
this page and the table.
"""


@dataclass(frozen=True, slots=True)
class HostError:
    """A machine's slowdown, what the others' table says of it, its errors by kind and ranks in percent."""

    engine: str
    machine: str
    slowdown: float
    others: float
    steps_pct: Mapping[tuple[str, bool], float]


def page(errors: Sequence[HostError]) -> str:
    """The whole page."""
    engines = list(dict.fromkeys(one.engine for one in errors))
    return "\n".join(
        [_INTRODUCTION, *(_section([e for e in errors if e.engine == name]) for name in engines)]
    )


def _section(errors: Sequence[HostError]) -> str:
    columns = sorted({column for one in errors for column in one.steps_pct}, key=lambda c: (c[1], c[0]))
    header = ["machine", "slowdown", "others"]
    header += [f"{kind}, ranks" if ranked else kind for kind, ranked in columns]
    rows = [
        [
            one.machine,
            number(one.slowdown, 2),
            number(one.others, 2),
            *(number(one.steps_pct.get(column, float("nan")), 0, sign=True) for column in columns),
        ]
        for one in sorted(errors, key=lambda one: one.slowdown)
    ]
    absolute = [
        [abs(one.steps_pct[column]) for one in errors if column in one.steps_pct] for column in columns
    ]
    of_slowdown = fmean(100 * abs(one.others / one.slowdown - 1) for one in errors)
    rows.append(
        ["mean of absolute errors", "", number(of_slowdown, 0), *(number(fmean(a), 0) for a in absolute)]
    )
    return f"## {errors[0].engine}\n\n{table(header, rows)}\n"
