"""Measure real engines on this machine's GPUs, several at a time.

    python -m revati.profile.truth run validation/cases/h200_x4.yaml --out DIR [--deadline-s 540]
    python -m revati.profile.truth pack DIR --out validation/runs

Every engine of the file starts as soon as its GPUs are free, in the order of the file, in processes of its
own. DIR gets a folder a run (run.json, requests.parquet, steps.parquet, logs/), complete once it has a
run.json, a log an engine, and gpus.csv, the GPUs' clocks and temperatures over time. Engines that fail are
reported; the others go on. Revati must be installed, so that vLLM finds its logging plug-ins.
`pack` makes small copies of runs for the repository.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from revati.engines.vllm.step_log import ENABLE_VARIABLE
from revati.profile.host_calibration import INSTALL_HINT, missing_plugins
from revati.profile.host_client import now
from revati.profile.host_engine import run_loop
from revati.profile.machine import gpu_query
from revati.profile.truth.cases import CaseError, Cases, EngineRuns
from revati.profile.truth.pack import pack
from revati.profile.truth.run import GPU_STATE, measure

LEAST_USEFUL_S = 90.0  # with less time left, no engine would be ready before the deadline
GRACE_S = 15.0  # for an engine that is still running after the deadline
POLL_S = 0.5
GPU_EVERY_S = 10.0


@dataclass(slots=True)
class Started:
    """An engine's process, leader of a process group of its own."""

    engine: EngineRuns
    process: subprocess.Popen[bytes]

    def end(self) -> None:
        """Kill the engine and all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


def run(cases: Cases, command: list[str], out: Path, deadline: float) -> dict[str, str]:
    """Start the engines as their GPUs become free; return how each of them ended.

    Args:
        command: starts one engine; its name and the deadline are appended.
        deadline: CLOCK_MONOTONIC seconds by which all is to end.
    """
    begin = next_look = now()
    waiting, running, ends = list(cases.engines.values()), list[Started](), dict[str, str]()
    out.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            for started in list(running):
                code = started.process.poll()
                if code is None and now() > deadline + GRACE_S:
                    code = 124
                if code is not None:
                    started.end()  # workers of an engine that crashed would keep the GPU's memory
                    running.remove(started)
                    ends[started.engine.name] = "done" if code == 0 else f"failed with exit status {code}"
                    print(f"[{started.engine.name}] {ends[started.engine.name]}", flush=True)
            taken = {gpu for started in running for gpu in started.engine.gpus}
            for engine in list(waiting):
                if not taken & set(engine.gpus):
                    waiting.remove(engine)
                    if now() + LEAST_USEFUL_S > deadline:
                        ends[engine.name] = "not started: no time left"
                        continue
                    until = min(deadline, begin + engine.until_s)
                    running.append(start(engine, [*command, engine.name, f"{until:.3f}"], out))
                taken |= set(engine.gpus)  # a later engine doesn't overtake one that waits for these
            if now() >= next_look:
                next_look = now() + GPU_EVERY_S
                with (out / "gpus.csv").open("a") as file:
                    file.writelines(f"{now():.2f}, {row}\n" for row in gpu_query(GPU_STATE))
            time.sleep(POLL_S)
    finally:
        for started in running:
            started.end()
    return ends


def start(engine: EngineRuns, command: list[str], out: Path) -> Started:
    print(f"[{engine.name}] starts on GPUs {engine.gpus}", flush=True)
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, engine.gpus)), ENABLE_VARIABLE: "1"}
    with (out / f"{engine.name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | visible, start_new_session=True
        )
    return Started(engine, process)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns 0, 1 if an engine failed, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="measure all engines of a file")
    runner.add_argument("cases", type=Path)
    runner.add_argument("--out", type=Path, required=True)
    runner.add_argument("--deadline-s", type=float, default=3600.0, help="end after so many seconds")
    one = commands.add_parser("engine", help="measure one engine in this process (used by run)")
    one.add_argument("cases", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("name")
    one.add_argument("deadline", type=float, help="CLOCK_MONOTONIC seconds")
    packer = commands.add_parser("pack", help="make small copies of measured runs")
    packer.add_argument("folders", type=Path, nargs="+")
    packer.add_argument("--out", type=Path, required=True)
    packer.add_argument("--every-log", action="store_true", help="keep the step logs of all repeats")
    arguments = parser.parse_args(argv)
    if arguments.command == "pack":
        print("\n".join(pack(arguments.folders, arguments.out, arguments.every_log)))
        return 0
    try:
        cases = Cases.read(arguments.cases)
    except (CaseError, OSError) as error:
        print(f"revati.profile.truth: {error}", file=sys.stderr)
        return 2
    if missing := missing_plugins():
        print(f"no vLLM plug-in {', '.join(missing)}: {INSTALL_HINT}", file=sys.stderr)
        return 2
    if arguments.command == "engine":
        engine = cases.engines[arguments.name]
        loads = [cases.workloads[name] for name in engine.workloads]
        models = arguments.out / "models"
        run_loop(measure(engine, loads, cases.gpu, arguments.out, models, arguments.deadline))
        return 0
    command = [sys.executable, "-m", "revati.profile.truth", "engine"]
    command += [str(arguments.cases), str(arguments.out)]
    ends = run(cases, command, arguments.out, now() + arguments.deadline_s)
    shutil.rmtree(arguments.out / "models", ignore_errors=True)
    for name, end in ends.items():
        print(f"{name}: {end}")
    return 0 if all(end == "done" for end in ends.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
