"""Which running requests have contexts that begin alike, as far as an engine's prefix cache found it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from revati.timing.sharing import Beginnings

_TELLING_TOKENS = 16  # a block of the caches: prompts that begin with the same ones belong to one group


def group_of(prompt: Sequence[int]) -> int:
    """Equal for prompts that begin alike."""
    return hash(tuple(prompt[:_TELLING_TOKENS]))


class RunningBeginnings:
    """Remembers what each request's prompt begins with, and how much of it was cached when it came."""

    def __init__(self) -> None:
        self._groups: dict[str, int] = {}
        self._cached: dict[str, int] = {}

    def add(self, request_id: str, prompt: Sequence[int], cached_tokens: int) -> None:
        self._groups[request_id] = group_of(prompt)
        if cached_tokens:
            self._cached[request_id] = cached_tokens

    def forget(self, request_id: str) -> None:
        self._groups.pop(request_id, None)
        self._cached.pop(request_id, None)

    def of(self, request_ids: Iterable[str]) -> Beginnings | None:
        """Of a batch, in its order; None while no running request has found anything in the cache."""
        if not self._cached:
            return None
        ids = list(request_ids)
        return Beginnings([self._groups[one] for one in ids], [self._cached.get(one, 0) for one in ids])
