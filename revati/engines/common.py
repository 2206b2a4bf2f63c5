"""What starting an engine needs whichever it is."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from revati.engines.base import InfeasibleError
from revati.engines.tokenizer import write_tokenizer
from revati.environments import cache_dir
from revati.spec import DeploymentSpec, HostSpec, ModelShape
from revati.timing.estimate import RankShape
from revati.virtual_time.host import FreeHost, HostCosts, MeasuredHost, TableHost
from revati.virtual_time.host_table import HostTable
from revati.virtual_time.speed import probe_ns


def import_for_forks(modules: Iterable[str]) -> None:
    """Import what engines need, in a process that is forked for each of them."""
    for module in modules:
        importlib.import_module(module)
    import torch
    import tqdm

    # The emulated device has no context that a fork could break, and a progress bar's thread no use.
    torch.cuda._is_in_bad_fork = lambda: False
    tqdm.tqdm.monitor_interval = 0


def write_model_folder(spec: DeploymentSpec, folder: Path) -> Path:
    """Write the model's ``config.json``, which is all that an engine needs with dummy weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(spec.model.hf_config))
    return folder


def served_model_folder(model: ModelShape) -> Path:
    """A folder with a model's configuration and tokenizer, for servers that are sent text.

    It is kept in the cache, since engines look up what they have compiled for a model by its folder.
    """
    config = json.dumps(model.hf_config)
    digest = hashlib.sha256(config.encode()).hexdigest()[:12]
    folder = cache_dir() / "models" / f"{model.name}-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            (Path(made) / "config.json").write_text(config)
            write_tokenizer(Path(made), model.vocab_size)
            with suppress(OSError):  # another process has been faster
                Path(made).rename(folder)
                Path(made).mkdir()  # for the clean-up
    return folder


def rank_shape(model: ModelShape, tp: int) -> RankShape:
    """One rank's slice of the model.

    Raises:
        InfeasibleError: the heads cannot be divided.
    """
    if model.num_attention_heads % tp:
        raise InfeasibleError(f"{model.num_attention_heads} attention heads cannot be divided by TP={tp}")
    return RankShape.of(model, tp)


def host_costs(
    host: HostSpec, table_name: str, num_layers: int, tp: int, pp: int, seed: int = 0, stage: int = 0
) -> HostCosts:
    """Host time as ``host.mode`` says, from the table of that name, for a model of so many layers."""
    if host.mode == "free":
        return FreeHost()
    table = HostTable.load(table_name, pipelined=pp > 1)
    costs = TableHost(table, math.ceil(num_layers / pp), tp, pp, seed, stage)
    return MeasuredHost(costs, table.cpu_factor(probe_ns())) if host.mode == "measured" else costs


def deployment_costs(spec: DeploymentSpec, table_name: str) -> HostCosts:
    """`host_costs` of a deployment's engines."""
    return host_costs(
        spec.host,
        table_name,
        spec.model.num_hidden_layers,
        spec.tensor_parallel_size,
        spec.pipeline_parallel_size,
        spec.seed,
    )
