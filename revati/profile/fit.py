"""Fit attention's correction trees to the measured batches: ``python -m revati.profile.fit [gpu=NAME]``.

Reads ``kernel_db``, writes ``kernel_db/gpu=NAME/fitted/*.parquet``. Needs scikit-learn; readers don't.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold, cross_val_predict
from threadpoolctl import threadpool_limits

from revati import paths
from revati.profile.sharing_fit import fit_sharing
from revati.timing import db
from revati.timing.attention import FITTED_FORMAT
from revati.timing.attention_features import FEATURES, BatchReader, Heads
from revati.timing.gpu import GpuLimits, load_limits
from revati.timing.schema import ATTENTION_SHARING
from revati.timing.trees import Trees

FOLDS = 5
TREES = {"attention": 200, "combine": 80}  # the reader evaluates all of them once per engine step
DEPTH = 8


def samples(
    rows: list[dict[str, Any]], kind: str, limits: GpuLimits
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Features, log(duration), and each row's heads."""
    chosen = [row for row in rows if row["kind"] == kind]
    if kind == "attention":  # what shared beginnings were compared with is a batch like others
        chosen += [row for row in rows if row["kind"] == ATTENTION_SHARING and not row["n"]]
    x = np.array(
        [
            BatchReader(Heads.of_row(row), limits)
            .read(
                np.array(row["query_lens"], dtype=np.int64),
                np.array(row["context_lens"], dtype=np.int64),
                row["num_tokens"] if row["variant"] == "graph" else 0,
            )
            .features[:]
            for row in chosen
        ]
    )
    y = np.log([row["median_us"] for row in chosen])
    groups = [str(Heads.of_row(row)) for row in chosen]
    return x, y, groups


def regressor(kind: str) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(
        max_iter=TREES[kind],
        max_depth=DEPTH,
        max_leaf_nodes=31,
        learning_rate=0.2,
        min_samples_leaf=5,
        random_state=0,
    )


def offset(kind: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """What trees correct: the physical schedule of the main kernel; the reduction over splits has none."""
    return x[:, 0] if kind == "attention" else np.zeros(len(x))


def held_out_errors(
    kind: str, x: NDArray[np.float64], y: NDArray[np.float64], groups: list[str]
) -> dict[str, NDArray[np.float64]]:
    """Relative errors of predictions for batches, and for whole head configurations, not trained on."""
    target = y - offset(kind, x)
    folds: dict[str, BaseCrossValidator] = {"batches": KFold(FOLDS, shuffle=True, random_state=0)}
    if len(set(groups)) > 1:
        folds["head counts"] = GroupKFold(min(FOLDS, len(set(groups))))
    predicted = {
        name: cross_val_predict(
            regressor(kind), x, target, groups=groups if name == "head counts" else None, cv=cv
        )
        for name, cv in folds.items()
    }
    return {name: np.exp(guess - target) - 1.0 for name, guess in predicted.items()}


def _weighted(errors: NDArray[np.float64], log_us: NDArray[np.float64]) -> float:
    """Mean absolute error, weighted by duration."""
    return float(np.average(np.abs(errors), weights=np.exp(log_us)))


def export(model: HistGradientBoostingRegressor) -> Trees:
    """scikit-learn's trees as plain arrays; its nodes are private, so the tests compare predictions."""
    nodes = [predictors[0].nodes for predictors in model._predictors]
    starts = np.cumsum([0, *(len(own) for own in nodes[:-1])])
    joined = np.concatenate(nodes)
    start = np.repeat(starts, [len(own) for own in nodes])
    itself = np.arange(len(joined))
    leaf = joined["is_leaf"].astype(bool)
    return Trees(
        roots=starts.astype(np.intp),
        feature=np.where(leaf, 0, joined["feature_idx"]).astype(np.intp),
        threshold=np.where(leaf, 0.0, joined["num_threshold"]),
        left=np.where(leaf, itself, joined["left"] + start).astype(np.intp),
        right=np.where(leaf, itself, joined["right"] + start).astype(np.intp),
        value=np.where(leaf, joined["value"], 0.0),
        base=float(np.ravel(model._baseline_prediction)[0]),
        depth=int(max(joined["depth"])),
    )


def fit(
    db_dir: Path, gpu: str, kinds: tuple[str, ...] = ("attention", "combine"), equal_requests: bool = False
) -> None:
    """Fit a GPU's trees and write them beside its measurements.

    Args:
        equal_requests: the rows are of batches of equal requests, with the reduction over splits included.
    """
    # More threads than free cores would spin for each other: one is fast enough, and repeatable.
    with threadpool_limits(1, user_api="openmp"):
        _fit(db_dir, gpu, kinds, equal_requests)


def _fit(db_dir: Path, gpu: str, kinds: tuple[str, ...], equal_requests: bool) -> None:
    rows = db.read(db_dir, gpu).to_pylist()
    limits = load_limits(paths.conf_dir() / "gpu", gpu)
    if sharing := [row for row in rows if row["kind"] == ATTENTION_SHARING]:
        found = fit_sharing(sharing, limits)
        found.save(db.partition(db_dir, gpu) / "fitted")
        print(f"{ATTENTION_SHARING}, {len(sharing)} rows: {found}")
    for kind in kinds:
        x, y, groups = samples(rows, kind, limits)
        errors = held_out_errors(kind, x, y, groups)
        trees = export(regressor(kind).fit(x, y - offset(kind, x)))
        held_out = [
            f"{name}: weighted mean {_weighted(error, y):.1%}, "
            f"median {np.median(np.abs(error)):.1%}, p90 {np.percentile(np.abs(error), 90):.1%}, "
            f"bias {np.mean(error):+.1%}"
            for name, error in errors.items()
        ]
        facts = {
            "features": ",".join(FEATURES),
            "format": FITTED_FORMAT,
            "rel_std": f"{float(np.sqrt(np.mean(errors['batches'] ** 2))):.4f}",
            "held_out": "; ".join(held_out),
            "max_query_tokens": str(round(np.exp(x[:, FEATURES.index("log_query_tokens")].max()))),
            "max_context": str(max(max(r["context_lens"]) for r in rows if r["kind"] == kind)),
            "rows": str(len(y)),
            "equal_requests": str(equal_requests),
            "weighted_error": f"{_weighted(errors['batches'], y):.4f}",
            "scikit-learn": sklearn.__version__,
        }
        trees.save(db.partition(db_dir, gpu) / "fitted" / f"{kind}.parquet", facts)
        print(f"{kind}, {len(y)} rows, held out: {facts['held_out']}")


def main(arguments: list[str]) -> int:
    gpu = next((a.removeprefix("gpu=") for a in arguments if a.startswith("gpu=")), "h200")
    fit(paths.kernel_db_dir(), gpu)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
