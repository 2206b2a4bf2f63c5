"""Engine settings as the options of a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def options(arguments: Mapping[str, Any], off: str | None = None) -> list[str]:
    """Words of a command line.

    Args:
        arguments: by the engine's own names.
        off: prefix of a switch that is off; None: switches can only be on.
    """
    words: list[str] = []
    for name, value in arguments.items():
        dashed = name.replace("_", "-")
        if not isinstance(value, bool):
            words += [f"--{dashed}", str(value)]
        elif value:
            words.append(f"--{dashed}")
        elif off is not None:
            words.append(f"--{off}{dashed}")
    return words
