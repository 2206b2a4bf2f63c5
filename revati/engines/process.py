"""A process of an emulated engine that runs as its own processes: its clock and its host's costs."""

from __future__ import annotations

import os

from revati.engines.common import host_costs
from revati.engines.emulation import Emulation
from revati.interception.core import NativeCore
from revati.virtual_time.host import FreeHost, HostMeter


class EmulatedProcess:
    """The clock and the host costs of this process."""

    def __init__(self, emulation: Emulation) -> None:
        self.emulation = emulation
        self.core = NativeCore()
        self.meter = HostMeter(self.core, keep_records=False)

    def charge_costs(
        self, table_name: str, num_layers: int, tp: int, pp: int, seed: int, stage: int = 0
    ) -> None:
        """Charge what a model of so many layers costs from now on; nothing outside of a domain."""
        if "REVATI_DOMAIN" in os.environ:
            costs = host_costs(self.emulation.host, table_name, num_layers, tp, pp, seed, stage)
        else:
            costs = FreeHost()
        self.meter.set_costs(costs)
