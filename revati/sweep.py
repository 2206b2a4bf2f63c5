"""Search for the deployments of a model that are worth having: ``python -m revati.sweep +model=llama13b``."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from revati.search import cli
from revati.search.run import check_sweep, run_sweep


def _run(config: DictConfig) -> int:
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    return run_sweep(config, Path(hydra_config.runtime.output_dir), overrides)


def main() -> int:
    return cli.main("sweep", _run, check_sweep)


if __name__ == "__main__":
    sys.exit(main())
