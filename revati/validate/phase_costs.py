"""What a host phase cost in the steps of a measured run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PhaseCosts:
    """Costs in steps of one kind of a phase, or of several together, and these steps' shapes; all of shape
    (steps,)."""

    phases: tuple[str, ...]
    kind: str
    cost_us: Array
    requests: Counts
    prompt_tokens: Counts
    prefills: Counts
