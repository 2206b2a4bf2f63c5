"""A native core without one: keeps the resolver that it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from revati.interception.core import Cost, LaunchKey


class ResolverCore:
    """Takes whatever `LaunchPricing` tells a native core, and asks it for the price of a launch."""

    def __init__(self) -> None:
        self._resolve: Callable[[LaunchKey, Cost], None] | None = None

    def set_resolver(self, resolve: Callable[[LaunchKey, Cost], None]) -> None:
        self._resolve = resolve

    def price(self, key: LaunchKey) -> Cost:
        assert self._resolve is not None
        cost = Cost()
        self._resolve(key, cost)
        return cost

    def __getattr__(self, name: str) -> Callable[..., None]:
        def ignored(*_: Any) -> None:
            return None

        return ignored
