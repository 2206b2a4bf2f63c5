"""Why an engine refuses its configuration, told across processes, in which it would get lost."""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLE = "REVATI_REFUSAL_FILE"


def refusal_environment(path: Path) -> dict[str, str]:
    """What makes an engine's processes write there why they refuse their configuration."""
    return {_VARIABLE: str(path)}


def tell_refusal(reason: str) -> None:
    """Write a reason where whoever started this process looks for it; the first one counts."""
    path = os.environ.get(_VARIABLE)
    if path and not Path(path).exists():
        Path(path).write_text(reason)
