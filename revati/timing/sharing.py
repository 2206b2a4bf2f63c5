"""What attention saves where contexts begin alike: what one request has read, the next one finds in L2.

An engine's prefix cache keeps equal beginnings of prompts in the same memory.  Requests that the GPU works on
at the same time read them together; others find them in L2 as long as not too much was read in between.  What
that saves is measured (kind ``attention_sharing``) and fitted by `revati.profile.sharing_fit`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from revati.timing.estimate import dtype_bytes

FILE = "sharing.json"
# Energy that a byte from L2 saves beside one from memory: by how far the clock falls (clock.json) in
# grouped_attention64x2200 and alike_attention64x2200.
L2_ENERGY_SAVED = 0.52


@dataclass(frozen=True, slots=True)
class Beginnings:
    """What the contexts of a batch begin with, by request and in the batch's order.

    ``groups``: equal for contexts that begin alike. ``tokens``: of a context, those that an earlier request
    of its group may have, too.
    """

    groups: Sequence[int]
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Followers:
    """Requests of a batch whose contexts begin as an earlier one's does, (n,) each.

    ``tokens``: that they have in common. ``requests_apart``: over those that the GPU works on at a time.
    ``tokens_apart``: that are read in between, over those that fit into L2. ``context_tokens``: of all
    requests.
    """

    tokens: NDArray[np.int64]
    requests_apart: NDArray[np.float64]
    tokens_apart: NDArray[np.float64]
    context_tokens: int


@dataclass(frozen=True, slots=True)
class SharingFit:
    """Share of attention's time that is saved if all of the contexts come from L2, and when they do.

    decode, mixed: the share, in steps of decodes alone and with prompts. power: how the gain falls with the
    number of requests in between, over those that the GPU works on at a time. reach: bytes in between, over
    the size of L2, from which on nothing is found there. rel_std: of a batch's duration. weighted_error: mean
    of absolutes over ``rows`` batches whose heads were left out, weighted by duration.
    """

    decode: float
    mixed: float
    power: float
    reach: float
    rel_std: float = 0.0
    weighted_error: float = 0.0
    rows: int = 0

    @classmethod
    def load(cls, folder: Path) -> SharingFit | None:
        """None where nothing was fitted."""
        path = folder / FILE
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    def save(self, folder: Path) -> None:
        rounded = {name: round(value, 4) for name, value in asdict(self).items()}
        (folder / FILE).write_text(json.dumps(rounded, indent=1) + "\n")

    def found_share(self, batch: Followers) -> float:
        """Share of a batch's contexts that need not come from memory."""
        return float(self.found_tokens(batch).sum()) / batch.context_tokens

    def found_tokens(self, batch: Followers) -> NDArray[np.float64]:
        """Of each follower, the tokens that need not come from memory."""
        together = 1.0 - batch.requests_apart**self.power
        kept = 1.0 - batch.tokens_apart / self.reach
        return np.asarray(batch.tokens * np.maximum(np.maximum(together, kept), 0.0))

    def saved(self, found_share: float, decodes: bool) -> float:
        """Share of a batch's time."""
        return (self.decode if decodes else self.mixed) * found_share


def token_bytes(num_kv_heads: int, head_dim: int, dtype: str) -> float:
    """Keys and values of a token in one layer."""
    return 2.0 * num_kv_heads * head_dim * dtype_bytes(dtype)


def followers(
    beginnings: Beginnings, context_lens: NDArray[np.int64], at_a_time: float, l2_tokens: float
) -> Followers:
    """Of a batch, those that may find their beginnings in L2.

    Args:
        context_lens: in tokens, by request.
        at_a_time: requests that the GPU works on at a time.
        l2_tokens: that fit into L2.
    """
    groups, tokens = np.asarray(beginnings.groups), np.asarray(beginnings.tokens)
    order = np.argsort(groups, kind="stable")
    again = np.flatnonzero(np.diff(groups[order]) == 0)
    other, place = order[again], order[again + 1]  # of one group, with none of it in between
    before = np.cumsum(context_lens)
    apart = before[place - 1] - before[other] + context_lens[other]
    return Followers(tokens[place], (place - other) / at_a_time, apart / l2_tokens, int(context_lens.sum()))
