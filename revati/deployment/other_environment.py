"""This package for the Python of an engine's own environment, in which nothing of ours is installed."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from importlib.metadata import distribution
from pathlib import Path

import revati

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
