"""Programs of an engine's own environment, in which nothing of ours is installed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import MutableMapping
from importlib.metadata import distribution
from pathlib import Path

import revati
from revati.engines.warm import engine_names
from revati.environments import REQUIREMENTS, environment_dir

_METADATA = ("METADATA", "entry_points.txt")


def import_from(environment: MutableMapping[str, str], python: Path, folder: Path) -> None:
    """Make ``python`` import this package, and find its plug-ins, with this environment.

    Args:
        folder: is made if it does not exist, and holds nothing else that could be imported.
    """
    if python == Path(sys.executable):
        return
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "revati").symlink_to(Path(revati.__file__).parent)
        installed = distribution("revati")
        metadata = folder / f"revati-{installed.version}.dist-info"
        metadata.mkdir()
        for name in _METADATA:
            (metadata / name).write_text(installed.read_text(name) or "")
    environment["PYTHONPATH"] = str(folder)


def engines_of(program: str) -> list[str]:
    """The engines that a program can be one of, by the environment that it lies in."""
    folder = Path(shutil.which(program) or program).parent
    apart = [name for name in engine_names() if name in REQUIREMENTS]
    own = [name for name in apart if folder == environment_dir(name) / "bin"]
    return own or [name for name in engine_names() if name not in REQUIREMENTS]
