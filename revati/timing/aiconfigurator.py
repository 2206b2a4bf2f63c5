"""The timing source ``aiconfigurator``: NVIDIA's published measurements (see `source.SourcePlugin`).

The package itself is only looked at outside of engines; they read what `revati.profile.aiconfigurator` made
of its tables.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from revati.environments import cache_dir
from revati.timing.attention import FITTED_FORMAT
from revati.timing.estimate import RankShape
from revati.timing.timer import KernelTimer

PACKAGE = "aiconfigurator-core"
FORMAT = 3  # of what is made of the tables; a new one makes them again, as new trees do
# conf/gpu → the package's name
SYSTEMS = {
    "a100": "a100_sxm",
    "b200": "b200_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "l40s": "l40s",
}


def version() -> str | None:
    """Of the installed package; None without it."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def data_dir(gpu: str) -> Path:
    """The package's tables of one GPU; found without importing it."""
    spec = find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(missing(gpu))
    return Path(spec.origin).parent / "systems" / "data" / SYSTEMS[gpu]


def database() -> Path:
    """What was made of the installed package's tables; laid out like ``kernel_db``."""
    return cache_dir() / f"aiconfigurator-{version()}-{FORMAT}.{FITTED_FORMAT}"


def gpus() -> list[str]:
    if version() is None:
        return []
    return sorted(gpu for gpu in SYSTEMS if data_dir(gpu).is_dir())


def missing(gpu: str) -> str:
    if version() is None:
        return "not installed; pip install 'revati[aiconfigurator]'"
    return f"has {', '.join(gpus())}"


def prepare(gpu: str) -> None:
    if not (database() / f"gpu={gpu}").is_dir():
        from revati.profile.aiconfigurator import convert  # needs scikit-learn

        convert(gpu)


def open(gpu: str, shape: RankShape) -> KernelTimer:
    """
    Raises:
        FileNotFoundError: the tables were not converted yet; names the command.
    """
    if not (database() / f"gpu={gpu}").is_dir():
        raise FileNotFoundError(
            f"{database()} has no {gpu}; run `python -m revati.profile.aiconfigurator gpu={gpu}` once"
        )
    return KernelTimer(database(), gpu, shape)
