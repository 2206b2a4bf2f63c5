"""Token ids that stand for what a model would have sampled."""

from __future__ import annotations

# Ordinary ids: neither the special ones at the vocabulary's ends nor always the same.
_FIRST, _STRIDE = 100, 7919


def ordinary_token_id(context_len: int, vocab_size: int) -> int:
    """An id that no engine takes for special, for the token after ``context_len`` others."""
    return _FIRST + context_len * _STRIDE % max(1, vocab_size - 2 * _FIRST)
