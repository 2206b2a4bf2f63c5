"""Why an engine refuses its configuration, told across processes, in which it would get lost."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_VARIABLE = "REVATI_REFUSAL_FILE"


def refusal_environment(path: Path) -> dict[str, str]:
    """What makes an engine's processes write there why they refuse their configuration."""
    return {_VARIABLE: str(path)}


def tell_refusal(reason: str) -> None:
    """Write a reason where whoever started this process looks for it; the first one counts."""
    path = os.environ.get(_VARIABLE)
    if path and not Path(path).exists():
        Path(path).write_text(reason)


def telling_refusals(
    method: Callable[..., Any], refusals: tuple[type[Exception], ...] = (ValueError,)
) -> Callable[..., Any]:
    """``method``, whose refusal is told: what the engine raises for it, and a GPU without enough memory."""
    import torch

    @functools.wraps(method)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (*refusals, torch.OutOfMemoryError) as error:
            tell_refusal(f"{type(error).__name__}: {error}")
            raise

    return told
