"""In which order to run points, so that an engine is started as rarely as possible.

Points with one engine key can share one warmed engine. A free slot takes, in this order: a point of an
engine that is warm, a point of one that nobody is starting (two cores then start two engines side by
side), and else whatever is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class EngineQueue(Generic[Item]):
    """Waiting items by engine key, each handed out once."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Item]] = {}
        self._running: Counter[str] = Counter()
        self._warm: set[str] = set()

    def add(self, items: Iterable[tuple[str, Item]]) -> None:
        """Append items with their engine keys; the order within a key is kept."""
        for key, item in items:
            self._waiting.setdefault(key, []).append(item)

    def __len__(self) -> int:
        return sum(len(items) for items in self._waiting.values())

    def take(self) -> Item | None:
        """Hand out the next item and count its engine as running; None if none waits."""
        if not self._waiting:
            return None
        key = min(self._waiting, key=self._rank)
        item = self._waiting[key].pop(0)
        if not self._waiting[key]:
            del self._waiting[key]
        self._running[key] += 1
        return item

    def release(self, key: str) -> None:
        """An item of this engine finished, so the engine is warm."""
        self._running[key] -= 1
        self._warm.add(key)

    def _rank(self, key: str) -> tuple[int, int]:
        starting = key not in self._warm and self._running[key] > 0
        state = 0 if key in self._warm else 2 if starting else 1
        return state, self._running[key]
