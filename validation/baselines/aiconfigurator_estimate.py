"""Baseline: what NVIDIA's aiconfigurator estimates for the measured cases.

    just baselines, or in an environment with aiconfigurator.txt:
    PYTHONPATH=. python validation/baselines/aiconfigurator_estimate.py [DIR ...]

Through its documented `cli_estimate`, with its newest database for vLLM on the GPU. It takes mean lengths and
a batch size, so that it can know neither arrivals nor a distribution:

- Requests at a rate: mode `agg` at the batch size at which its own latency and the rate agree (Little's law).
- All requests at once: mode `static` with all of them in one batch.

Its TTFT and TPOT stand for the medians. Latency is TTFT + (output tokens - 1) · TPOT for each request's own
output, so that it has percentiles, too. Tails of TTFT and TPOT and the size of the KV cache it doesn't tell.
Predictions go to validation/predictions/aiconfigurator.csv.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from aiconfigurator.cli.api import EstimateResult, cli_estimate

from revati.validate.options import validation_dir
from revati.validate.predictions import Prediction, write_csv
from revati.validate.runs import Case, Unsupported, model_shape, read_cases

SYSTEMS = {"h100": "h100_sxm", "h200": "h200_sxm"}
ROUNDS = 12

Estimate = Callable[[int], EstimateResult]


@cache
def model_folder(name: str) -> str:
    """A folder with the model's config.json."""
    folder = Path(tempfile.mkdtemp(prefix="aiconfigurator-")) / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model_shape(name).hf_config))
    return str(folder)


def predict(case: Case) -> Prediction:
    """Estimate one case; what goes wrong in aiconfigurator is the reason why there is none."""
    content, workload = case.description, case.workload
    if workload.sharing is not None:
        return Prediction(skipped="what is asked of it here has no prefix cache")
    isl, osl = round(workload.prompt_tokens.mean()), round(workload.output_tokens.mean())
    offline = bool(workload.arrival_s[-1] == 0)
    stages = int(content["pipeline_parallel_size"])
    try:
        folder, system = model_folder(content["model"]), SYSTEMS[content["gpu"]]

        @cache
        def estimate(batch_size: int) -> EstimateResult:
            return cli_estimate(
                folder,
                system,
                mode="static" if offline else "agg",
                backend_name="vllm",
                isl=isl,
                osl=osl,
                batch_size=batch_size,
                tp_size=int(content["tensor_parallel_size"]),
                pp_size=stages,
                gemm_quant_mode=content["engine_args"].get("quantization"),
            )

        most = int(content["resolved"]["max_num_seqs"])
        if offline:
            batch_size = min(most, len(workload))
        else:
            rate_per_s = (len(workload) - 1) / (workload.arrival_s[-1] - workload.arrival_s[0])
            batch_size = steady_batch_size(estimate, rate_per_s / stages, most)
        result = estimate(batch_size)
    except Unsupported as reason:
        return Prediction(skipped=str(reason))
    except Exception as error:  # whatever it refuses belongs into the table
        return Prediction(skipped=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    latency_ms = result.ttft + (workload.output_tokens - 1) * result.tpot
    duration_s = float(np.max(workload.arrival_s + latency_ms / 1e3))
    return Prediction(
        {
            "output_throughput_tok_per_s": float(workload.output_tokens.sum()) / duration_s,
            "ttft_ms_p50": float(result.ttft),
            "tpot_ms_p50": float(result.tpot),
            "e2e_ms_mean": float(latency_ms.mean()),
            "e2e_ms_p50": float(np.percentile(latency_ms, 50)),
            "e2e_ms_p99": float(np.percentile(latency_ms, 99)),
        }
    )


def steady_batch_size(estimate: Estimate, rate_per_s: float, most: int) -> int:
    """The batch size at which requests leave as fast as they come: rate × latency at that batch size.

    At most `most`, which an overloaded engine reaches.
    """
    batch_size = 1
    for _ in range(ROUNDS):
        wanted = round(rate_per_s * float(estimate(batch_size).request_latency) / 1e3)
        wanted = min(max(1, wanted), most)
        if abs(wanted - batch_size) <= 1:
            return wanted
        batch_size = wanted
    return batch_size


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", default=[validation_dir() / "runs"])
    parser.add_argument("--out", type=Path, default=validation_dir() / "predictions" / "aiconfigurator.csv")
    arguments = parser.parse_args(argv)
    cases = [case for case in read_cases(arguments.folders) if case.description["engine"] == "vllm"]
    write_csv({case.name: predict(case) for case in cases}, arguments.out)


if __name__ == "__main__":
    main()
