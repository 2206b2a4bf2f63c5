"""The error that a workload description raises."""


class WorkloadError(ValueError):
    """A workload that cannot be built; the message names what is accepted."""
