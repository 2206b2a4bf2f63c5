"""A log of profiling sessions: what was measured when, in which state the GPU and its software were."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from revati.profile.gpu_state import query_gpu

FILE = "sessions.jsonl"
STATE = "temperature.gpu,clocks.sm,clocks.mem,power.draw,clocks_event_reasons.active"


@dataclass(slots=True)
class Session:
    """Appends a JSON line for each unit to ``<folder>/sessions.jsonl``.

    Rows of the database refer to it by ``measured_at``.
    """

    folder: Path
    provenance: dict[str, Any] = field(default_factory=dict)

    def log(self, unit: str, began_s: float, **facts: object) -> dict[str, Any]:
        """Note a unit that began at ``time.monotonic()`` = ``began_s`` and has just ended."""
        names = [name.split(".")[0] for name in STATE.replace("clocks.", "clocks_").split(",")]
        state = dict(zip(names, (text.strip() for text in query_gpu(STATE).split(",")), strict=False))
        line = {**self.provenance, "unit": unit, "seconds": round(time.monotonic() - began_s, 2), **facts}
        line |= {"gpu_after": state}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / FILE).open("a") as out:
            out.write(json.dumps(line) + "\n")
        return line
