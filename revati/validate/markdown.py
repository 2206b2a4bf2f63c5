"""Tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table: the first column to the left, the others to the right."""
    lines = [_row(header), "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + [_row(row) for row in rows])


def number(value: float, digits: int = 1, sign: bool = False) -> str:
    """Format a number; NaN is a dash."""
    return "–" if math.isnan(value) else f"{value:{'+' if sign else ''}.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
