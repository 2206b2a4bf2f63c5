"""Where Revati's data folders are: the checkout, or the folder that ``REVATI_HOME`` names."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder that holds ``conf/``, ``search_spaces/`` and ``kernel_db/``.

    Raises:
        FileNotFoundError: neither ``REVATI_HOME`` nor the package's parent folder holds ``conf/``.
    """
    named = os.environ.get("REVATI_HOME")
    folder = Path(named) if named else Path(__file__).resolve().parent.parent
    if not (folder / "conf").is_dir():
        hint = "REVATI_HOME" if named else "the package's parent folder; set REVATI_HOME to a checkout"
        raise FileNotFoundError(f"no conf/ folder in {folder} ({hint})")
    return folder


def conf_dir() -> Path:
    return home() / "conf"


def conf_names(group: str) -> list[str]:
    """Of the descriptions in ``conf/<group>``, in order."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def search_spaces_dir() -> Path:
    return home() / "search_spaces"


def kernel_db_dir() -> Path:
    return home() / "kernel_db"
