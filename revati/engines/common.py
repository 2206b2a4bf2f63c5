"""What starting an engine needs whichever it is."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable
from pathlib import Path

from revati.engines.base import InfeasibleError
from revati.engines.tokenizer import write_tokenizer
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


def write_served_model_folder(spec: DeploymentSpec, folder: Path) -> Path:
    """`write_model_folder`, with a tokenizer for servers that are sent text."""
    write_model_folder(spec, folder)
    write_tokenizer(folder, spec.model.vocab_size)
    return folder


def rank_shape(model: ModelShape, tp: int) -> RankShape:
    """One rank's slice of the model.

    Raises:
        InfeasibleError: the heads cannot be divided.
    """
    if model.num_attention_heads % tp:
        raise InfeasibleError(f"{model.num_attention_heads} attention heads cannot be divided by TP={tp}")
    return RankShape.of(model, tp)


def host_costs(host: HostSpec, table_name: str, num_layers: int, tp: int, pp: int) -> HostCosts:
    """Host time as ``host.mode`` says, from the table of that name, for a model of so many layers."""
    if host.mode == "free":
        return FreeHost()
    table = HostTable.load(table_name)
    costs = TableHost(table, math.ceil(num_layers / pp), tp, pp)
    return MeasuredHost(costs, table.cpu_factor(probe_ns())) if host.mode == "measured" else costs


def deployment_costs(spec: DeploymentSpec, table_name: str) -> HostCosts:
    """`host_costs` of a deployment's engines."""
    return host_costs(
        spec.host,
        table_name,
        spec.model.num_hidden_layers,
        spec.tensor_parallel_size,
        spec.pipeline_parallel_size,
    )
