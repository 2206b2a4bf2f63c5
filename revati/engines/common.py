"""What starting an engine needs whichever it is."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path

from revati.engines.base import InfeasibleError
from revati.engines.tokenizer import TOKENIZER_FILES, write_tokenizer
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


def cached_model_folder(model: ModelShape, *, tokenizer: bool = False) -> Path:
    """A folder with a model's configuration, which is all that an engine needs with dummy weights.

    It is kept in the cache, since engines look up what they have compiled for a model by its folder.

    Args:
        tokenizer: there is one, too, for servers that are sent text.

    Raises:
        ValueError: there is no tokenizer for so large a vocabulary.
    """
    config = json.dumps(model.hf_config)
    digest = hashlib.sha256(config.encode()).hexdigest()[:12]
    folder = cache_dir() / "models" / f"{model.name}-{digest}"
    files = ["config.json", *(TOKENIZER_FILES if tokenizer else ())]
    if not all((folder / name).exists() for name in files):
        folder.mkdir(parents=True, exist_ok=True)
        # Other processes may be about to do the same.
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            (Path(made) / "config.json").write_text(config)
            if tokenizer:
                write_tokenizer(Path(made), model.vocab_size)
            for name in files:
                (Path(made) / name).replace(folder / name)
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
