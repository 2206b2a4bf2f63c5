"""Calibrate host time on a machine with the target's CPU and GPU: real vLLM, synthetic load, step logs.

    python -m revati.profile.host_calibration run --out DIR [--engine llama7b ...]
    python -m revati.profile.host_fit --runs DIR/llama7b DIR/... --out conf/host/NAME.yaml

`run` starts one engine after another and drives it through segments that visit the batches a host table
must know: lone prefills, bursts, decode batches, and arrivals at random. The load resembles no workload
that results are validated with, and no end-to-end result goes into the table, which `host_fit` makes.
Revati must be installed there, so that the engines find its logging plug-ins.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from revati.profile.host_engine import convert_scenes, run_engine, run_loop
from revati.profile.host_load import CASES, DEFAULT_CASES
from revati.profile.machine import memory_of_a_context

PLUGINS = ("revati_step_log", "revati_worker_log", "revati_frontend_log")
INSTALL_HINT = "install Revati first (pip install -e .)"


def missing_plugins() -> list[str]:
    """The logging plug-ins that engines started here would not find."""
    plugins = entry_points(group="vllm.general_plugins").names
    return [name for name in PLUGINS if name not in plugins]


def run(arguments: argparse.Namespace) -> int:
    """Run each engine in a process of its own; a failing one doesn't stop the others."""
    if missing := missing_plugins():
        print(f"no vLLM plug-in {', '.join(missing)}: {INSTALL_HINT}", file=sys.stderr)
        return 2
    failed = []
    for name in arguments.engine:
        command = [sys.executable, "-m", __spec__.name, "engine", "--name", name, "--out", str(arguments.out)]
        code = subprocess.run(command, env=os.environ | {"REVATI_STEP_LOG": "1"}).returncode
        if code:
            failed.append(name)
            print(f"[{name}] failed with exit status {code}", flush=True)
    return 1 if failed else 0


def run_one(arguments: argparse.Namespace) -> int:
    """Run one engine in this process."""
    case, out = CASES[arguments.name], arguments.out / arguments.name
    run_loop(run_engine(case, out, arguments.out / "models"))
    if case.scenes:
        convert_scenes(out / "scenes")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run engines on this machine's GPU and log their steps")
    runner.add_argument("--out", type=Path, required=True, help="folder for the logs")
    runner.add_argument("--engine", nargs="+", choices=sorted(CASES), default=list(DEFAULT_CASES))
    one = commands.add_parser("engine", help="run one engine in this process (used by run)")
    one.add_argument("--name", choices=sorted(CASES), required=True)
    one.add_argument("--out", type=Path, required=True)
    memory = commands.add_parser("memory", help="record the memory of a bare CUDA context")
    memory.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.command == "run":
        return run(arguments)
    if arguments.command == "engine":
        return run_one(arguments)
    memory_of_a_context(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
