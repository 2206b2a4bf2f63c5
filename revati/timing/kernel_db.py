"""The timing source ``kernel_db``: measurements that `revati.profile` made (see `source.SourcePlugin`)."""

from __future__ import annotations

from revati import paths
from revati.timing import db
from revati.timing.estimate import RankShape
from revati.timing.timer import KernelTimer


def gpus() -> list[str]:
    return db.known_gpus(paths.kernel_db_dir())


def missing(gpu: str) -> str:
    return (
        f"has {', '.join(gpus()) or 'nothing'}; on a machine with the GPU, "
        f"`python -m revati.profile gpu={gpu}` measures it"
    )


def prepare(gpu: str) -> None:
    """Nothing to do: the files are read as they are."""


def open(gpu: str, shape: RankShape) -> KernelTimer:
    return KernelTimer(paths.kernel_db_dir(), gpu, shape)
