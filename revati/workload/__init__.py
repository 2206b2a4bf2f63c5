"""What clients ask for: when requests arrive, how long their prompts and outputs are, what they share."""

from revati.workload.errors import WorkloadError
from revati.workload.lengths import FixedLengths, Lengths, LognormalLengths, lengths_from_config
from revati.workload.sharing import (
    Sessions,
    SharedPrefixes,
    Sharing,
    prefixes_from_config,
    sessions_from_config,
)
from revati.workload.workload import Workload

__all__ = [
    "FixedLengths",
    "Lengths",
    "LognormalLengths",
    "Sessions",
    "SharedPrefixes",
    "Sharing",
    "Workload",
    "WorkloadError",
    "lengths_from_config",
    "prefixes_from_config",
    "sessions_from_config",
]
