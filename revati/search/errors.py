"""The error of a request that cannot be carried out as it was asked for."""

from __future__ import annotations

from collections.abc import Iterable


class ConfigError(ValueError):
    """Bad input; the message is one line that names what is accepted."""


def unknown(kind: str, value: object, accepted: Iterable[object]) -> ConfigError:
    """The error for a name that is none of the accepted ones."""
    names = ", ".join(str(name) for name in accepted)
    return ConfigError(f"unknown {kind} {str(value)!r}; accepted: {names or 'none are installed'}")
