"""Are configurations ranked as they are in reality, and is the one picked among the best?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy.stats import kendalltau  # type: ignore[import-untyped]

from revati.validate.metrics import COLUMNS, KV_METRIC, Column
from revati.validate.predictions import Prediction
from revati.validate.runs import Case, model_shape

LEAST_CONFIGURATIONS = 2
LEAST_REPEATS = 3  # so that those that one of them is judged by have a noise of their own
THROUGHPUT = "output_throughput_tok_per_s"


@dataclass(frozen=True, slots=True)
class Ranking:
    """Configurations of one model under the same requests, ranked by one metric.

    `tau` is Kendall's τ-b between measured and predicted. Of `pairs` only those are `decided` whose
    measured difference is beyond the noise of their repeats; `concordant` of these are predicted the same
    way round. `regret_pct`: how much worse than the best measured the one is that prediction would pick.
    """

    metric: str
    cases: tuple[str, ...]
    tau: float
    pairs: int
    decided: int
    concordant: int
    picked: str
    best: str
    regret_pct: float


def groups(cases: Sequence[Case]) -> list[list[Case]]:
    """Configurations of the same model that served the same requests, two or more at a time.

    What was measured again later, on another machine, is in a group of its own.
    """
    grouped: dict[tuple[str, str, int], list[Case]] = {}
    times: Counter[tuple[str, str]] = Counter()
    for case in sorted(cases, key=lambda case: case.recorded_at):
        model, requests = model_shape(case.description["model"]).name, case.requests_digest()
        same = requests, case.configuration
        grouped.setdefault((model, requests, times[same]), []).append(case)
        times[same] += 1
    return [group for group in grouped.values() if len(group) >= LEAST_CONFIGURATIONS]


def rank(group: Sequence[Case], predictions: Mapping[str, Prediction], column: Column) -> Ranking | None:
    """Rank a group by one metric; None if fewer than two of its cases are predicted."""
    known = [
        case
        for case in group
        if (prediction := predictions.get(case.name))
        and not math.isnan(prediction.metrics.get(column.metric, math.nan))
        and not math.isnan(case.measured(column.metric))
    ]
    if len(known) < LEAST_CONFIGURATIONS:
        return None
    # Throughput is what a GPU yields: more GPUs are no better configuration by themselves.
    gpus = [case.num_gpus if column.metric == THROUGHPUT else 1 for case in known]
    measured = [case.measured(column.metric) / n for case, n in zip(known, gpus, strict=True)]
    predicted = [
        predictions[case.name].metrics[column.metric] / n for case, n in zip(known, gpus, strict=True)
    ]
    best_of = min if column.lower_is_better else max
    picked = predicted.index(best_of(predicted))
    best = measured.index(best_of(measured))
    regret = (
        measured[picked] / measured[best] if column.lower_is_better else measured[best] / measured[picked]
    )
    decided = [
        (i, j) for i, j in combinations(range(len(known)), 2) if _differ(known, measured, column.metric, i, j)
    ]
    concordant = sum((measured[i] > measured[j]) == (predicted[i] > predicted[j]) for i, j in decided)
    return Ranking(
        metric=column.metric,
        cases=tuple(case.name for case in known),
        tau=float(kendalltau(measured, predicted).statistic),
        pairs=math.comb(len(known), 2),
        decided=len(decided),
        concordant=concordant,
        picked=known[picked].name,
        best=known[best].name,
        regret_pct=100 * (regret - 1),
    )


def rankings(grouped: Sequence[Sequence[Case]], predictions: Mapping[str, Prediction]) -> list[list[Ranking]]:
    """Rankings by group and metric, without the size of the KV cache."""
    columns = [column for column in COLUMNS if column.metric != KV_METRIC]
    ranked = ([rank(group, predictions, column) for column in columns] for group in grouped)
    return [found for row in ranked if (found := [ranking for ranking in row if ranking])]


def rankings_by_repeats(grouped: Sequence[Sequence[Case]]) -> Iterator[list[list[Ranking]]]:
    """Rankings as one more real run would have them: by each repeat in turn, judged by the others.

    Args:
        grouped: cases that were measured `LEAST_REPEATS` times or more.
    """
    cases = [case for group in grouped for case in group]
    for turn in range(max((len(case.runs) for case in cases), default=0)):
        one = {case.name: case.runs[turn % len(case.runs)] for case in cases}
        others = [[case.without(one[case.name]) for case in group] for group in grouped]
        yield rankings(others, {name: Prediction(run.metrics) for name, run in one.items()})


def _differ(known: Sequence[Case], measured: Sequence[float], metric: str, i: int, j: int) -> bool:
    noise = max((n for k in (i, j) if not math.isnan(n := known[k].noise_pct(metric))), default=0.0)
    return abs(measured[i] / measured[j] - 1) * 100 > noise
