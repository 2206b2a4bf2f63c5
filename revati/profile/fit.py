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
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.model_selection import KFold, LeaveOneGroupOut, cross_val_predict

from revati import paths
from revati.timing import db
from revati.timing.attention_features import FEATURES, Heads, features
from revati.timing.gpu import GpuLimits, load_limits
from revati.timing.trees import Trees

TREES = 300
DEPTH = 5
FOLDS = 5


def samples(
    rows: list[dict[str, Any]], kind: str, limits: GpuLimits
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Features, log(duration), and each row's head counts."""
    chosen = [row for row in rows if row["kind"] == kind]
    x = np.array(
        [
            features(
                np.array(row["query_lens"], dtype=np.int64),
                np.array(row["context_lens"], dtype=np.int64),
                Heads(row["num_q_heads"], row["num_kv_heads"], row["head_dim"]),
                row["variant"] == "graph",
                limits,
            )
            for row in chosen
        ]
    )
    y = np.log([row["median_us"] for row in chosen])
    groups = [f"{row['num_q_heads']}:{row['num_kv_heads']}" for row in chosen]
    return x, y, groups


def regressor() -> GradientBoostingRegressor:
    return GradientBoostingRegressor(
        n_estimators=TREES,
        max_depth=DEPTH,
        learning_rate=0.08,
        subsample=0.7,
        min_samples_leaf=3,
        random_state=0,
    )


def held_out_errors(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: list[str]
) -> dict[str, NDArray[np.float64]]:
    """Relative errors of predictions for batches, and for whole head configurations, not trained on."""
    offset = x[:, 0]
    target = y - offset
    folds = {
        "batches": cross_val_predict(regressor(), x, target, cv=KFold(FOLDS, shuffle=True, random_state=0)),
        "head counts": cross_val_predict(regressor(), x, target, groups=groups, cv=LeaveOneGroupOut()),
    }
    return {name: np.exp(predicted - target) - 1.0 for name, predicted in folds.items()}


def export(model: GradientBoostingRegressor) -> Trees:
    """scikit-learn's trees as plain arrays."""
    parts: dict[str, list[NDArray[Any]]] = {k: [] for k in ("feature", "threshold", "left", "right", "value")}
    roots, at = [], 0
    for (estimator,) in model.estimators_:
        tree = estimator.tree_
        count = tree.node_count
        own = np.arange(count)
        leaf = tree.children_left < 0
        roots.append(at)
        parts["feature"].append(np.where(leaf, 0, tree.feature))
        parts["threshold"].append(np.where(leaf, np.inf, tree.threshold))
        parts["left"].append(np.where(leaf, own, tree.children_left) + at)
        parts["right"].append(np.where(leaf, own, tree.children_right) + at)
        parts["value"].append(model.learning_rate * tree.value[:, 0, 0])
        at += count
    joined = {name: np.concatenate(found) for name, found in parts.items()}
    return Trees(
        roots=np.array(roots, dtype=np.int32),
        feature=joined["feature"].astype(np.int32),
        threshold=joined["threshold"].astype(np.float64),
        left=joined["left"].astype(np.int32),
        right=joined["right"].astype(np.int32),
        value=joined["value"].astype(np.float64),
        base=float(np.ravel(model.init_.constant_)[0]),
        depth=DEPTH,
    )


def fit(db_dir: Path, gpu: str) -> None:
    rows = db.read(db_dir, gpu).to_pylist()
    limits = load_limits(paths.conf_dir() / "gpu", gpu)
    for kind in ("attention", "combine"):
        x, y, groups = samples(rows, kind, limits)
        errors = held_out_errors(x, y, groups)
        trees = export(regressor().fit(x, y - x[:, 0]))
        facts = {
            "features": ",".join(FEATURES),
            "rel_std": f"{float(np.sqrt(np.mean(errors['batches'] ** 2))):.4f}",
            "max_query_tokens": str(round(np.exp(x[:, FEATURES.index("log_query_tokens")].max()))),
            "max_context": str(max(max(r["context_lens"]) for r in rows if r["kind"] == kind)),
            "rows": str(len(y)),
            "scikit-learn": sklearn.__version__,
        }
        trees.save(db.partition(db_dir, gpu) / "fitted" / f"{kind}.parquet", facts)
        for name, error in errors.items():
            size = np.abs(error)
            print(
                f"{kind}, held-out {name}: median {np.median(size):.1%}, p90 {np.percentile(size, 90):.1%}, "
                f"bias {np.mean(error):+.1%} over {len(size)} rows"
            )


def main(arguments: list[str]) -> int:
    gpu = next((a.removeprefix("gpu=") for a in arguments if a.startswith("gpu=")), "h200")
    fit(paths.kernel_db_dir(), gpu)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
