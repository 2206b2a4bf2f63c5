"""How many chunks of Python's frame stack the measured vLLM engines' forward passes begin.

    python -m revati.validate.frame_chunks

Emulates each deployment of validation/runs in one stage with a few requests, and writes
validation/frame_chunks.csv: a row a kind of step of each.  It tells costs that an engine's frames make
from those of its machine (`revati.validate.machines`).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from revati.deployment.mixed import TemplateClient, TemplateServer
from revati.spec import DeploymentSpec, HostSpec
from revati.validate.options import validation_dir
from revati.validate.runs import Case, model_shape, read_cases
from revati.workload import Workload

FILE = "frame_chunks.csv"
COLUMNS = ("model", "quantization", "tensor_parallel_size", "kind", "frame_chunks")
# On the stack where forward passes of the measured engines begin, with vLLM 0.26 and Python 3.12:
# `revati.profile.truth` logs them in processes forked from its own.
MEASURED_WORDS = {"engine_core_words": 849, "worker_words": 257}
# One after another: prompts of a batch that has graphs, and of one that has none.
JOBS = 2
_PROMPTS, _OUTPUT = (100, 100, 100, 100, 900, 900, 900, 900), 3

# Model, quantization, tensor-parallel size
Engine = tuple[str, str, int]
# Frame chunks by kind of step
Chunks = Mapping[str, int]


def framed(description: Mapping[str, Any]) -> Engine:
    """What decides how large an engine's frames are; ``description`` is a run's run.json, in one stage."""
    model, quantization = description["model"], description["engine_args"].get("quantization")
    return model_shape(model).name, quantization or "", int(description["tensor_parallel_size"])


def count(spec: DeploymentSpec, client: TemplateClient, folder: Path) -> Chunks:
    """Emulate a few requests and count."""
    arrivals_s = np.linspace(2.0, 16.0, len(_PROMPTS))
    workload = Workload("chunks", arrivals_s, np.array(_PROMPTS), np.full(len(_PROMPTS), _OUTPUT))
    result = client.run(spec, workload, folder)
    if result.status != "ok":
        raise RuntimeError(f"{spec.model.name}: {result.status}: {result.reason}")
    steps = pq.read_table(folder / "phases.parquet").to_pandas().query("phase == 'execute' and requests > 0")
    return {str(kind): int(found.iloc[-1]) for kind, found in steps.groupby("kind")["frame_chunks"]}


def read(path: Path) -> Mapping[Engine, Chunks]:
    """Read frame_chunks.csv."""
    found: dict[Engine, dict[str, int]] = {}
    with path.open(newline="") as file:
        for model, quantization, ranks, kind, chunks in list(csv.reader(file))[1:]:
            found.setdefault((model, quantization, int(ranks)), {})[kind] = int(chunks)
    return found


def main() -> int:
    """Entry point."""
    folder = validation_dir()
    engines: dict[Engine, Case] = {}
    for case in read_cases([folder / "runs"]):
        told = case.description
        one_stage = told["engine"] == "vllm" and told["pipeline_parallel_size"] == 1
        if one_stage and not told["engine_args"].get("enforce_eager"):
            engines.setdefault(framed(told), case)
    names = sorted(engines)
    with TemporaryDirectory() as out:
        host = Path(out) / "counting.yaml"
        host.write_text(yaml.safe_dump({"base": "h200_xeon", "frame_chunks": {"us": 1.0, **MEASURED_WORDS}}))
        with TemplateServer(Path(out) / "logs", ["vllm"]) as server, ThreadPoolExecutor(JOBS) as pool:

            def counted(case: Case) -> Chunks:
                spec = replace(case, calibrated=None, host=str(host)).spec(HostSpec("h200_xeon"))
                return count(spec, TemplateClient(server.socket_path), Path(out) / case.name)

            with (folder / FILE).open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                for engine, found in zip(
                    names, pool.map(counted, [engines[name] for name in names]), strict=True
                ):
                    writer.writerows((*engine, kind, chunks) for kind, chunks in found.items())
                    print(*engine, found, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
