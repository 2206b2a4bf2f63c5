"""Pareto fronts: ties, NaN, infinities, and agreement with the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revati.search.pareto import dominates, is_pareto_front

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("values", "front"),
    [
        ([[1, 2], [2, 1]], [True, True]),
        ([[1, 1], [2, 2]], [True, False]),
        ([[1, 1], [1, 2]], [True, False]),
        ([[1, 1], [1, 1]], [True, True]),  # equal rows do not dominate each other
        ([[1, 1], [1, 1], [0, 1]], [False, False, True]),
        ([[-INF, 1], [0, 0]], [True, True]),
        ([[INF, 1], [0, 1]], [False, True]),
        ([[INF, INF], [INF, INF]], [True, True]),
        ([[-INF, -INF], [-INF, -INF], [-INF, 0]], [True, True, False]),
        ([[NAN, 0], [1, 1]], [False, True]),
        ([[NAN, NAN]], [False]),
        ([[INF, 0], [NAN, -1]], [True, False]),
        ([[1, 2, 3], [3, 2, 1], [2, 2, 2], [3, 3, 3]], [True, True, True, False]),
        ([[1], [1], [2]], [True, True, False]),
    ],
)
def test_front(values: list[list[float]], front: list[bool]) -> None:
    assert is_pareto_front(values).tolist() == front


def test_front_of_nothing_is_empty() -> None:
    assert is_pareto_front(np.empty((0, 2))).tolist() == []


def test_front_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="trials, objectives"):
        is_pareto_front([1.0, 2.0])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0], [1, 0], True),
        ([0, 0], [0, 0], False),
        ([0, 1], [1, 0], False),
        ([INF, 0], [INF, 1], True),
        ([-INF, 0], [INF, 0], True),
        ([0, 0], [NAN, 0], True),
        ([NAN, 0], [1, 1], False),
        ([NAN, 0], [NAN, 0], False),
    ],
)
def test_dominates(a: list[float], b: list[float], expected: bool) -> None:
    assert dominates(np.array(a, float), np.array(b, float)) is expected


VALUE = st.sampled_from([-INF, -1.0, 0.0, 1.0, 2.0, INF, NAN])


@given(st.integers(1, 3).flatmap(lambda width: st.lists(st.lists(VALUE, min_size=width, max_size=width))))
def test_front_agrees_with_the_definition(rows: list[list[float]]) -> None:
    def is_dominated(row: list[float]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, row, strict=True)) and other != row
            for other in rows
            if not np.isnan(other).any()
        )

    expected = [not np.isnan(row).any() and not is_dominated(row) for row in rows]
    width = len(rows[0]) if rows else 1
    assert is_pareto_front(np.array(rows, float).reshape(len(rows), width)).tolist() == expected
