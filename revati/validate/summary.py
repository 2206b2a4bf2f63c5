"""SUMMARY.md: each metric in a column of its own, the noise of repeats beside the errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from revati.validate.elsewhere import measured_elsewhere, other_machine_error_pct
from revati.validate.errors import (
    chance_beyond,
    chance_inside,
    error_pct,
    is_beyond,
    is_inside,
    summed_up,
)
from revati.validate.markdown import number, table
from revati.validate.metrics import COLUMNS, Column
from revati.validate.predictions import EMULATED, Prediction, Predictions
from revati.validate.ranking import LEAST_REPEATS, Ranking, groups, rankings, rankings_by_repeats
from revati.validate.runs import Case

NAMED_CASES = 6
GOOD_PICK_PCT = 2

INTRODUCTION = """\
# Emulated against measured runs

Real vLLM and SGLang on real GPUs (dummy weights, greedy, lengths as planned, no HTTP) against their
emulation, both serving the same requests. `python -m revati.validate out=validation` recomputes this page and
the emulated runs; with `emulate=0` only this page, from the runs stored beside it.

An error is (predicted − measured) / measured in percent; measured is the median of a case's repeats. *Noise*
is the error that one more real run would have: each repeat against the median of the others. It exists only
for cases that were repeated. *Another real machine*: the error of predicting a case by the same deployment's
runs under the same requests on another machine with the same GPUs."""


def summary(cases: Sequence[Case], predictions: Predictions) -> str:
    """The whole page.

    Args:
        predictions: of the emulation (`EMULATED`) and of baselines, by case.
    """
    emulated = predictions[EMULATED]
    parts = [INTRODUCTION]
    if settings := _settings(emulated):
        parts += ["Emulation, by case:", "\n".join(settings)]
    parts += ["## All cases", _totals(cases, predictions), _spread(cases, emulated)]
    done = [case for case in cases if not emulated[case.name].skipped]
    parts += ["## Errors of the emulation by case", CASE_NOTE, _by_case(done, emulated)]
    skipped = [f"- {case.name}: {emulated[case.name].skipped}" for case in cases if case not in done]
    if skipped:
        parts += ["Not emulated:", "\n".join(skipped)]
    grouped = groups(cases)
    ranked = {predictor: rankings(grouped, by_case) for predictor, by_case in predictions.items()}
    if ranked[EMULATED]:
        totals = _ranking_totals(ranked, cases, emulated)
        parts += ["## Ranking", RANKING_NOTE, totals, _rankings(ranked[EMULATED])]
    for predictor, by_case in predictions.items():
        if predictor != EMULATED:
            known = [case for case in cases if case.name in by_case and not by_case[case.name].skipped]
            parts += [f"## Errors of {predictor} by case", _by_case(known, by_case)]
            failed = {name: p.skipped for name, p in by_case.items() if p.skipped}
            parts += ["\n".join(f"- {name}: {reason}" for name, reason in failed.items())] if failed else []
    return "\n\n".join(parts) + "\n"


CASE_NOTE = (
    "Error in percent, ± the noise of the case's repeats; *dev*: somebody looked at these runs before."
)
RANKING_NOTE = """\
Configurations of one model that served the same requests, ranked by each metric (throughput: by GPU). A pair
is decided when its measured difference exceeds the noise. Regret: how much worse the configuration picked by
emulation is than the best one measured. *One more real run*: each repeat in turn ranks the configurations,
and the others judge it."""


def _settings(emulated: Mapping[str, Prediction]) -> list[str]:
    """Where the emulations' host time comes from, and in which cases: few ones by name."""
    cases: dict[str, list[str]] = {}
    for name, prediction in emulated.items():
        if prediction.setting:
            cases.setdefault(prediction.setting, []).append(name)
    return [
        f"- {setting}: {', '.join(names) if len(names) <= NAMED_CASES else f'{len(names)} cases'}"
        for setting, names in sorted(cases.items())
    ]


def _totals(cases: Sequence[Case], predictions: Predictions) -> str:
    emulated = predictions[EMULATED]
    repeated = [case for case in cases if len(case.runs) > 1 and not emulated[case.name].skipped]
    dev = [case for case in cases if case.dev]
    held_out = [case for case in cases if not case.dev]

    def means(title: str, chosen: Sequence[Case], by_case: Mapping[str, Prediction]) -> list[str]:
        sums = [summed_up(chosen, by_case, column.metric) for column in COLUMNS]
        count = max((s.count for s in sums), default=0)
        return [f"{title} ({count} cases)", *(number(s.mean_abs_pct) for s in sums)]

    rows = [["required mean, worst"] + [_limits(column) for column in COLUMNS]]
    rows.append(means("**emulation: mean of absolute errors**", cases, emulated))
    sums = [summed_up(cases, emulated, column.metric) for column in COLUMNS]
    rows.append(["mean error (bias)", *(number(s.bias_pct, sign=True) for s in sums)])
    rows.append(["worst error", *(number(s.worst_pct, sign=True) for s in sums)])
    if dev and held_out:
        rows.append(means("held-out cases", held_out, emulated))
        rows.append(means("dev cases", dev, emulated))
    if repeated:
        rows.append(means("repeated cases", repeated, emulated))
        noise = [[case.noise_pct(column.metric) for case in repeated] for column in COLUMNS]
        rows.append(["noise of repeats, same cases", *(number(_mean(values)) for values in noise)])
        judged = [_judged(repeated, emulated, column.metric) for column in COLUMNS]
        inside = [
            f"{sum(inside for inside, _ in cases)} of {len(cases)}" if cases else "–" for cases in judged
        ]
        expected = [f"{sum(chance for _, chance in cases):.1f}" if cases else "–" for cases in judged]
        rows.append(["inside the repeats' spread", *inside])
        rows.append(["one more real run: inside", *expected])
        limited = [(column.metric, column.worst_limit_pct) for column in COLUMNS]
        beyond = [
            str(sum(is_beyond(case, emulated[case.name], metric, limit) for case in repeated))
            if limit
            else "–"
            for metric, limit in limited
        ]
        likely = [
            f"{sum(chance_beyond(case, metric, limit) for case in repeated):.1f}" if limit else "–"
            for metric, limit in limited
        ]
        rows.append(["repeated cases beyond the worst allowed", *beyond])
        rows.append(["one more real run: beyond", *likely])
    if elsewhere := measured_elsewhere(cases):
        moved = [case for case in cases if case.name in elsewhere]
        rows.append(means("cases measured on several machines", moved, emulated))
        errors = [[other_machine_error_pct(case, elsewhere, c.metric) for case in moved] for c in COLUMNS]
        rows.append(["another real machine, same cases", *(number(_mean(values)) for values in errors)])
    rows += [
        means(predictor, cases, by_case)
        for predictor, by_case in predictions.items()
        if predictor != EMULATED
    ]
    return table(["error %", *(column.title for column in COLUMNS)], rows)


def _by_case(cases: Sequence[Case], predictions: Mapping[str, Prediction]) -> str:
    rows = []
    for case in cases:
        cells = [case.name + (" *dev*" if case.dev else "")]
        if any(run.description.get("frontend_stall") for run in case.runs):
            cells[0] += " (client paused)"
        for column in COLUMNS:
            error = error_pct(case, predictions[case.name], column.metric)
            noise = case.noise_pct(column.metric)
            floor = "" if math.isnan(noise) or math.isnan(error) else f" ±{noise:.1f}"
            cells.append(number(error, sign=True) + floor)
        rows.append([*cells, str(len(case.runs))])
    return table(["case", *(column.title for column in COLUMNS), "repeats"], rows)


def _ranking_totals(
    ranked: Mapping[str, Sequence[Sequence[Ranking]]],
    cases: Sequence[Case],
    emulated: Mapping[str, Prediction],
) -> str:
    often = groups([case for case in cases if len(case.runs) >= LEAST_REPEATS])
    repeats = list(rankings_by_repeats(often))
    rows = [
        _ranking_total("**emulation**", [ranked[EMULATED]]),
        _ranking_total("emulation, cases measured three times", [rankings(often, emulated)]),
        _ranking_total("one more real run, same cases", repeats),
        *(_ranking_total(predictor, [found]) for predictor, found in ranked.items() if predictor != EMULATED),
    ]
    header = [
        "ranked by",
        "rankings",
        "mean τ",
        "decided pairs right",
        f"picked within {GOOD_PICK_PCT} %",
        "mean regret %",
        "worst regret %",
    ]
    return table(header, [row for row in rows if row])


def _ranking_total(title: str, turns: Sequence[Sequence[Sequence[Ranking]]]) -> list[str]:
    """A row of means over some turns of ranking the same cases; empty if there is nothing to rank."""
    found = [ranking for turn in turns for group in turn for ranking in group]
    if not found:
        return []
    regrets = [ranking.regret_pct for ranking in found]
    ranked, concordant, decided, good = (
        round(count / len(turns))
        for count in (
            len(found),
            sum(ranking.concordant for ranking in found),
            sum(ranking.decided for ranking in found),
            sum(regret <= GOOD_PICK_PCT for regret in regrets),
        )
    )
    return [
        title,
        str(ranked),
        number(_mean([ranking.tau for ranking in found]), 2),
        f"{concordant} of {decided}",
        f"{good} of {ranked}",
        number(_mean(regrets)),
        number(max(regrets)),
    ]


def _rankings(ranked: Sequence[Sequence[Ranking]]) -> str:
    titles = {column.metric: column.title for column in COLUMNS}
    rows = [
        [
            ", ".join(ranking.cases),
            titles[ranking.metric],
            number(ranking.tau, 2),
            f"{ranking.concordant} of {ranking.decided}",
            ranking.picked,
            number(ranking.regret_pct),
        ]
        for group in ranked
        for ranking in group
    ]
    header = [
        "configurations",
        "metric",
        "Kendall's τ",
        "decided pairs right",
        "picked by emulation",
        "regret %",
    ]
    return table(header, rows)


def _spread(cases: Sequence[Case], predictions: Mapping[str, Prediction]) -> str:
    """How often the emulation lies among the repeats, over all columns in which these differ."""
    judged = [found for column in COLUMNS for found in _judged(cases, predictions, column.metric)]
    if not judged:
        return "No case was repeated, so the noise is unknown."
    share = 100 * _mean([float(inside) for inside, _ in judged])
    expected = 100 * _mean([chance for _, chance in judged])
    return (
        f"Of {len(judged)} metrics that differ between repeats, {share:.0f} % lie between the lowest and the "
        f"highest repeat; of one more real run, {expected:.0f} % would."
    )


def _judged(
    cases: Sequence[Case], predictions: Mapping[str, Prediction], metric: str
) -> list[tuple[bool, float]]:
    """Whether predictions lie among the repeats, and how probable that is for one more real run."""
    judged = ((case, is_inside(case, predictions[case.name], metric)) for case in cases)
    return [(inside, chance_inside(case, metric)) for case, inside in judged if inside is not None]


def _limits(column: Column) -> str:
    worst = f", {column.worst_limit_pct:g}" if column.worst_limit_pct else ""
    return f"≤ {column.mean_limit_pct:g}{worst}"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
