"""Attention where contexts begin alike: what is found in L2, and what that saves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from revati import paths
from revati.engines.beginnings import RunningBeginnings
from revati.profile.sharing_fit import fit_sharing
from revati.timing import KernelTimer, db
from revati.timing.gpu import GpuLimits, load_limits
from revati.timing.schema import ATTENTION_SHARING
from revati.timing.sharing import Beginnings, SharingFit, followers, token_bytes
from tests.timing.database import SHAPE

FIT = SharingFit(decode=0.3, mixed=0.1, power=2.0, reach=1.5, rel_std=0.04)


@pytest.fixture(scope="module")
def limits() -> GpuLimits:
    return load_limits(paths.conf_dir() / "gpu", "h200")


def found(groups: str, tokens: int, *, at_a_time: float = 1e-9, reach_tokens: float = 1e-9) -> float:
    beginnings = Beginnings([ord(group) for group in groups], [tokens] * len(groups))
    batch = followers(beginnings, np.full(len(groups), 100), at_a_time, reach_tokens / FIT.reach)
    return float(FIT.found_tokens(batch).sum())


def test_requests_that_run_together_read_a_beginning_once() -> None:
    assert found("aaaa", 80, at_a_time=1e9) == pytest.approx(3 * 80)
    assert found("abab", 80, at_a_time=1e9) == pytest.approx(2 * 80)
    assert found("abcd", 80, at_a_time=1e9, reach_tokens=1e9) == 0.0
    assert found("abcda", 80, at_a_time=4.0) == 0.0, "too far apart"
    assert found("aba", 80, at_a_time=4.0) == pytest.approx(0.75 * 80)


def test_others_find_it_in_l2_unless_too_much_was_read_in_between() -> None:
    assert found("ab" * 2, 80, reach_tokens=1000.0) == pytest.approx(2 * 0.8 * 80)
    assert found("ab" * 2, 80, reach_tokens=200.0) == 0.0


def test_steps_with_prompts_save_less() -> None:
    batch = Beginnings([7] * 4, [80] * 4)
    share = FIT.found_share(followers(batch, np.full(4, 100), 1e9, 1e9))
    decodes, mixed = (FIT.saved(share, alone) for alone in (True, False))
    assert decodes == pytest.approx(0.3 * 0.6)
    assert mixed == pytest.approx(0.1 * 0.6)


def test_what_was_measured_is_fitted(limits: GpuLimits, tmp_path: Path) -> None:
    rows = []
    for heads, requests, prompt, context in (
        *((8, 32, 0, 600), (8, 64, 0, 1600), (40, 64, 0, 1600)),
        *((8, 64, 128, 600), (40, 32, 128, 1600)),
    ):
        query = [1] * requests + [prompt] * bool(prompt)
        for groups in (0, 1, 4, 16):
            contexts, shared = [context] * len(query), context - 100
            batch = Beginnings([at % max(1, groups) for at in range(len(query))], [shared] * len(query))
            l2_tokens = limits.l2_bytes / token_bytes(heads, 128, "bfloat16")
            share = FIT.found_share(followers(batch, np.array(contexts), limits.sm_count / heads, l2_tokens))
            saved = FIT.saved(share, not prompt) if groups else 0.0
            rows.append(
                {"num_q_heads": heads, "num_kv_heads": heads, "head_dim": 128, "dtype": "bfloat16"}
                | {"query_lens": query, "context_lens": contexts, "n": groups, "k": shared}
                | {"median_us": 100.0 * (1.0 - saved)}
            )
    again = fit_sharing(rows, limits)
    expected = asdict(FIT) | {"rel_std": 0.0, "weighted_error": again.weighted_error, "rows": 15}
    assert asdict(again) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    again.save(tmp_path)
    stored = SharingFit.load(tmp_path)
    assert stored is not None
    assert asdict(stored) == pytest.approx(asdict(again), abs=1e-4)


def test_the_h200_was_measured_and_what_nobody_measured_is_said_to_save_nothing() -> None:
    queries, contexts = np.ones(64, np.int64), np.full(64, 2200)
    one_prefix = Beginnings([0] * 64, [2048] * 64)
    for gpu, least, most in (("h200", 0.65, 0.75), ("h100", 1.0, 1.0)):
        timer = KernelTimer(paths.kernel_db_dir(), gpu, SHAPE)
        alone, _ = timer.attention(queries, contexts)
        shared, _ = timer.attention(queries, contexts, "graph", one_prefix)
        assert least <= shared.duration_us / alone.duration_us <= most
        assert shared.provenance == (alone.provenance if gpu == "h200" else "extrapolated")
        assert shared.rel_std > alone.rel_std or gpu == "h100"


def test_the_files_say_what_their_rows_do(limits: GpuLimits) -> None:
    rows = [
        row for row in db.read(paths.kernel_db_dir(), "h200").to_pylist() if row["kind"] == ATTENTION_SHARING
    ]
    stored = SharingFit.load(db.partition(paths.kernel_db_dir(), "h200") / "fitted")
    assert stored is not None
    assert asdict(stored) == pytest.approx(asdict(fit_sharing(rows, limits)), abs=1e-3)


def test_running_requests_are_told_from_those_that_found_nothing() -> None:
    running = RunningBeginnings()
    running.add("first", [1] * 40, 0)
    assert running.of(["first"]) is None
    running.add("second", [1] * 20 + [2] * 20, 16)
    running.add("other", [3] * 40, 0)
    batch = running.of(["other", "first", "second"])
    assert batch is not None
    assert batch.tokens == [0, 0, 16]
    assert batch.groups[1] == batch.groups[2] != batch.groups[0]
    running.forget("second")
    assert running.of(["first", "other"]) is None
