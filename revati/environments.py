"""Python environments of the engines that cannot share one with the rest, made by `revati.provision`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Engines that run in an environment of their own, and what is installed there: the engine, and what
# `revati` imports in an engine's process.
REQUIREMENTS = {"sglang": ("sglang==0.5.17", "numpy", "pyarrow", "pyyaml")}


class EnvironmentMissingError(RuntimeError):
    """An engine's environment does not exist; the message says how to make it."""


def cache_dir() -> Path:
    """Where environments and compiled kernels are kept: ``REVATI_CACHE``, else ``~/.cache/revati``."""
    return Path(os.environ.get("REVATI_CACHE") or Path.home() / ".cache" / "revati")


def environment_dir(engine: str) -> Path:
    """The engine's environment: ``REVATI_<ENGINE>_ENV``, else a folder of the cache by Python's version."""
    named = os.environ.get(f"REVATI_{engine.upper()}_ENV")
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    return Path(named) if named else cache_dir() / "environments" / f"{engine}-{version}"


def interpreter(engine: str) -> Path:
    """The Python that runs this engine's processes.

    Raises:
        EnvironmentMissingError: the engine has an environment of its own, and nobody made it yet.
    """
    if engine not in REQUIREMENTS:
        return Path(sys.executable)
    python = environment_dir(engine) / "bin" / "python"
    if not python.exists():
        raise EnvironmentMissingError(
            f"{engine} is not installed in {environment_dir(engine)}: run python -m revati.provision {engine}"
        )
    return python


def site_packages(engine: str) -> Path:
    """Where the packages of an engine's environment are."""
    return next(environment_dir(engine).glob("lib/python3*/site-packages"))


def cuda_home(engine: str) -> Path:
    """A CUDA toolkit made of the environment's wheels, for kernels that an engine compiles at run time."""
    return environment_dir(engine) / "cuda"
