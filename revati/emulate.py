"""Emulate one deployment under one workload: ``python -m revati.emulate +model=llama7b``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from revati.search import cli, output
from revati.search.build import build_objective, build_workload, one_spec
from revati.search.progress import format_metric
from revati.search.runner import connect, open_server, runner_for
from revati.search.signals import INTERRUPTED, interruptible
from revati.search.trial import run_trial


def check(config: DictConfig) -> None:
    """Raise ConfigError if the deployment cannot be emulated as it was asked for."""
    build_workload(config)
    build_objective(config)
    _runner(config)


def _runner(config: DictConfig) -> str:
    spec = one_spec(config)
    return runner_for(config.deployment, [spec.engine], [spec.replicas], [spec.pipeline_parallel_size])


def run(config: DictConfig, folder: Path, overrides: list[str], runner: str | None = None) -> int:
    """Emulate, print the metrics, and write metrics.json and requests/ into the folder.

    Args:
        runner: module that runs trials; None: the configured deployment's.

    Returns:
        The exit status: 0, 1 if the deployment is infeasible or failed, 130 after an interruption.
    """
    spec, workload, objective = one_spec(config), build_workload(config), build_objective(config)
    runner = runner or _runner(config)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    output.write_config(folder, config, overrides, workload)
    print(f"{spec.model.name} on {spec.num_gpus} x {spec.gpu}, {len(workload)} requests; starting the engine")
    try:
        with interruptible(), open_server(runner, folder / "logs", spec.gpu, [spec.engine]) as server:
            client = connect(runner, server.socket_path)
            result = run_trial(client, spec, workload, objective.request_slo, "emulate", folder)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    (folder / "metrics.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    if result.status != "ok":
        print(f"{result.status}: {result.reason}; logs: {folder / 'logs'}", file=sys.stderr)
        return 1
    for name in result.metrics or {}:
        print(f"  {format_metric(name, result.columns())}")
    shares = ", ".join(
        f"{name.removeprefix('gpu_time_share_')} {value:.1%}"
        for name, value in (result.provenance or {}).items()
        if name.startswith("gpu_time_share_")
    )
    known = result.columns()
    print(
        f"  {result.kv_cache_blocks} KV-cache blocks; GPU time: {shares}; "
        f"expected error {known['gpu_time_rel_std']:.1%}, {known['unseen_kernels']} unmeasured launches\n"
        f"Output: {folder}"
    )
    return 0


def _job(config: DictConfig) -> int:
    hydra_config = HydraConfig.get()
    return run(config, Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task))


def main() -> int:
    return cli.main("emulate", _job, check)


if __name__ == "__main__":
    sys.exit(main())
