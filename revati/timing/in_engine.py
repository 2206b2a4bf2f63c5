"""How much longer attention takes inside a serving engine than alone.

The measured grid times attention by itself.  Recordings of real engines show the same kernel slower once a
decode batch reads more of the KV cache than a few hundred MiB per layer.  The curve is made from such
recordings by ``python -m revati.profile.in_engine``.
"""

from __future__ import annotations

import bisect
import json
import math
from dataclasses import dataclass
from pathlib import Path

FILE = "attention_in_engine.json"


@dataclass(frozen=True, slots=True)
class InEngineCurve:
    """Factor on a decode batch's duration by log2 of the KV bytes that it reads per layer."""

    log2_bytes: tuple[float, ...]
    factor: tuple[float, ...]

    @classmethod
    def load(cls, folder: Path) -> InEngineCurve:
        """The curve of a GPU; no effect where nothing was recorded."""
        path = folder / FILE
        if not path.is_file():
            return NO_EFFECT
        content = json.loads(path.read_text())
        return cls(tuple(content["log2_bytes"]), tuple(content["factor"]))

    def at(self, nbytes: float) -> float:
        """Linear between the recorded sizes, constant beyond them."""
        x = math.log2(max(1.0, nbytes))
        i = bisect.bisect_left(self.log2_bytes, x)
        if i == 0:
            return self.factor[0]
        if i == len(self.log2_bytes):
            return self.factor[-1]
        low, high = self.log2_bytes[i - 1], self.log2_bytes[i]
        share = (x - low) / (high - low)
        return self.factor[i - 1] * (1 - share) + self.factor[i] * share


NO_EFFECT = InEngineCurve((0.0,), (1.0,))
