"""What the processes of an emulated deployment are told through their environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from revati.spec import HostSpec

EMULATION_VARIABLE = "REVATI_EMULATION"


@dataclass(frozen=True, slots=True)
class Emulation:
    """The GPU, and where the times of its kernels and of the host's work come from."""

    gpu: str
    host: HostSpec
    timing_source: str = "kernel_db"

    def to_environment(self) -> dict[str, str]:
        host = {"name": self.host.name, "mode": self.host.mode}
        content = {"gpu": self.gpu, "host": host, "timing_source": self.timing_source}
        return {EMULATION_VARIABLE: json.dumps(content)}

    @classmethod
    def of_process(cls, environment: Mapping[str, str] = os.environ) -> Emulation | None:
        """What this process was told; None outside of emulation."""
        text = environment.get(EMULATION_VARIABLE)
        if text is None:
            return None
        content = json.loads(text)
        return cls(content["gpu"], HostSpec(**content["host"]), content["timing_source"])
