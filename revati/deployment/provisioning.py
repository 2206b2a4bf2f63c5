"""Makes the environments of what cannot share one with the rest (see `revati.environments`).

Each is made once, with uv where there is one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from revati.environments import (
    MEASURED,
    REQUIREMENTS,
    ROUTERS,
    cuda_home,
    environment_dir,
    site_packages,
    unmeasured_release,
)

_COMPLETE = "complete"  # a file in an environment without a toolkit


def provision_missing(names: Iterable[str]) -> None:
    """Make the environments of these engines, or the routers', that do not exist yet."""
    for name in names:
        if name in REQUIREMENTS and not _is_complete(name):
            print(f"installing {name} into {environment_dir(name)} (once)", file=sys.stderr, flush=True)
            provision(name)


def provision(name: str) -> None:
    """Install an engine or the routers into their environment; what is there already is kept.

    So is another release of the engine, which somebody else has installed there.

    Raises:
        subprocess.CalledProcessError: an installer failed; it has said why.
    """
    folder = environment_dir(name)
    if not (_is_complete(name) or (name in MEASURED and unmeasured_release(name))):
        _install(folder, REQUIREMENTS[name])
    if name == ROUTERS:
        (folder / _COMPLETE).touch()
    else:
        _link_toolkit(name)


def _is_complete(name: str) -> bool:
    return (environment_dir(name) / _COMPLETE if name == ROUTERS else cuda_home(name)).exists()


def _install(folder: Path, requirements: Sequence[str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    # uv of this environment, where Revati was installed with it, else any
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv:
        if not python.exists():
            subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *requirements], check=True)
    else:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)


def _link_toolkit(engine: str) -> None:
    """Lay out the wheels' nvcc, headers and libraries as a toolkit: ``lib64`` with unversioned names."""
    home, wheels = cuda_home(engine), site_packages(engine) / "nvidia" / "cu13"
    building = home.with_name("cuda.new")
    shutil.rmtree(building, ignore_errors=True)
    (building / "lib64").mkdir(parents=True)
    for part in ("bin", "include", "nvvm"):
        (building / part).symlink_to(wheels / part)
    for library in (wheels / "lib").iterdir():
        (building / "lib64" / library.name).symlink_to(library)
    (building / "lib64" / "libcudart.so").symlink_to(wheels / "lib" / "libcudart.so.13")
    shutil.rmtree(home, ignore_errors=True)
    building.rename(home)
