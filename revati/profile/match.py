"""Compare an emulated run's launches with those recorded of a real engine, name by name.

    python -m revati.profile.match KERNELS SCENES [out=FILE]

KERNELS is the kernels.parquet of an emulated trial, SCENES a folder with the activities.parquet of a host
calibration (`revati.profile.host`) of the same model on the same GPU. Prints every kernel of both, and lists
those that only one side has: a launch that the emulation lacks is time that it doesn't charge. Products and
copies are compared as a whole, since a recording doesn't tell their sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from revati.timing.families import ATTENTION_MAIN, family, without_number

# What the profiler calls copies and fills → our directions.
COPIES = {"HtoD": "copy h2d", "DtoH": "copy d2h", "DtoD": "copy d2d", "Memset": "copy memset"}
NAME_WIDTH = 90


@dataclass(slots=True)
class Side:
    """One side's launches of a kernel."""

    launches: int = 0
    gpu_time_us: float = 0.0

    def add(self, launches: int, gpu_time_us: float) -> None:
        self.launches += launches
        self.gpu_time_us += gpu_time_us


Launches = dict[str, Side]


def key(name: str) -> str:
    """What a launch is compared by: its name without numbers and parameters, or its kind of work."""
    if name.startswith(("Memcpy", "Memset", "copy ")):
        return next((own for text, own in COPIES.items() if text in name), name)
    if ATTENTION_MAIN.search(name):  # its instantiations differ by what the batch needs
        return "attention"
    if name.startswith("gemm ") or family(name) == "gemm":
        return "gemm"
    if name.startswith("nccl ") or "ncclDevKernel" in name:
        return "nccl"
    return without_number(name)


def emulated(path: Path) -> Launches:
    rows = pq.read_table(path).select(["name", "launches", "gpu_time_us"]).to_pylist()
    return _sum((row["name"], row["launches"], row["gpu_time_us"]) for row in rows)


def recorded(folder: Path) -> Launches:
    rows = pq.read_table(folder / "activities.parquet", columns=["name", "dur_us"]).to_pylist()
    return _sum((row["name"], 1, row["dur_us"]) for row in rows)


def _sum(rows: Iterable[tuple[str, int, float]]) -> Launches:
    found: Launches = {}
    for name, launches, gpu_time_us in rows:
        found.setdefault(key(name), Side()).add(launches, gpu_time_us)
    return found


def without_counterpart(one: Launches, other: Launches) -> list[str]:
    """Names that only ``one`` has, those with most time first."""
    return sorted(set(one) - set(other), key=lambda name: -one[name].gpu_time_us)


def report(emulation: Launches, recording: Launches) -> str:
    lines = [
        "| kernel | recorded launches | µs each | emulated launches | µs each |",
        "|---|---|---|---|---|",
    ]
    both = sorted(set(emulation) & set(recording), key=lambda name: -recording[name].gpu_time_us)
    missing, extra = without_counterpart(recording, emulation), without_counterpart(emulation, recording)
    for name in [*both, *missing, *extra]:
        sides = (recording.get(name), emulation.get(name))
        cells = [
            f"{side.launches} | {side.gpu_time_us / side.launches:.2f}" if side else "– | –" for side in sides
        ]
        lines.append(f"| `{name[:NAME_WIDTH]}` | {' | '.join(cells)} |")
    lines += ["", *_verdict("recorded, but not emulated", missing, recording)]
    lines += _verdict("emulated, but not recorded", extra, emulation)
    return "\n".join(lines)


def _verdict(text: str, names: list[str], side: Launches) -> list[str]:
    total = sum(one.gpu_time_us for one in side.values())
    share = sum(side[name].gpu_time_us for name in names) / total if total else 0.0
    head = f"{len(names)} kernels are {text} ({share:.2%} of that side's GPU time)"
    return [head + (":" if names else "."), *(f"- `{name[:NAME_WIDTH]}`" for name in names)]


def main(arguments: list[str]) -> int:
    places = [argument for argument in arguments if not argument.startswith("out=")]
    if len(places) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    text = report(emulated(Path(places[0])), recorded(Path(places[1])))
    print(text)
    for argument in arguments:
        if argument.startswith("out="):
            Path(argument.removeprefix("out=")).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
