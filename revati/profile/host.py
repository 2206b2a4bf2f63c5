"""``python -m revati.profile host=NAME``: from engines on this machine to a host table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from revati import paths
from revati.profile import host_fit
from revati.profile.host_load import CASES, DEFAULT_CASES
from revati.profile.options import HostOptions


def calibrate(options: HostOptions) -> int:
    """Run the engines that have no logs yet, then fit the table; returns the exit status."""
    engines = options.engines or DEFAULT_CASES
    if unknown := [name for name in engines if name not in CASES]:
        print(
            f"revati.profile: engines: unknown {', '.join(unknown)}; accepted: {', '.join(sorted(CASES))}",
            file=sys.stderr,
        )
        return 2
    logs = options.logs or Path("outputs") / f"host-{options.host}"
    todo = [name for name in engines if not is_complete(logs / name)]
    if todo:
        command = [sys.executable, "-m", "revati.profile.host_calibration", "run", "--out", str(logs)]
        status = subprocess.run([*command, "--engine", *todo]).returncode
        if status == 2:
            return status  # it said what is missing here
    finished = [logs / name for name in engines if is_complete(logs / name)]
    if not finished:
        print("revati.profile: no engine ran to its end", file=sys.stderr)
        return 1
    table = paths.conf_dir() / "host" / f"{options.host}.yaml"
    host_fit.main(["--runs", *map(str, finished), "--out", str(table)])
    print(f"wrote {table} from {', '.join(path.name for path in finished)}")
    return 0 if len(finished) == len(engines) else 1


def is_complete(folder: Path) -> bool:
    """A calibrated engine's logs, written when all of its load had been served."""
    return all((folder / name).is_file() for name in ("run.json", "steps.parquet", "requests.parquet"))
