"""What clients ask for: when requests arrive, how long their prompts and outputs are."""

from revati.workload.errors import WorkloadError
from revati.workload.lengths import FixedLengths, Lengths, LognormalLengths, lengths_from_config
from revati.workload.workload import Workload

__all__ = [
    "FixedLengths",
    "Lengths",
    "LognormalLengths",
    "Workload",
    "WorkloadError",
    "lengths_from_config",
]
