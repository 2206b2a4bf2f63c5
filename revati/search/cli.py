"""The command line of the Hydra entry points: friendlier overrides, and checks before anything starts.

Hydra reports bad input with several lines and exit status 1, after configuring the job. Here the overrides
are composed once beforehand; what is wrong ends as one line and exit status 2.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from revati import paths
from revati.deployment.metrics import METRIC_COLUMNS
from revati.search import config as schemas
from revati.search.errors import ConfigError
from revati.search.knobs import DEPLOYMENT_KNOBS, ENGINE_KNOBS
from revati.search.signals import INTERRUPTED
from revati.spec import ModelShape

_GROUPS = ("model", "engine", "gpu", "workload", "objective", "search")


def main(name: str, run: Callable[[DictConfig], int], check: Callable[[DictConfig], None]) -> int:
    """Run an entry point, and give its exit status.

    Args:
        name: ``sweep`` or ``emulate``: the schema and the file in ``conf/``.
        run: called by Hydra with the configuration, once, or once a job with ``-m``.
        check: called with each configuration before anything is started; raises ConfigError.
    """
    import hydra

    try:
        schemas.register()
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(help_text(name))
            return 0
        arguments = rewrite(sys.argv[1:])
        if not _asks_hydra(arguments):
            for overrides in expand(arguments):
                check(compose_config(name, overrides))
    except ConfigError as error:
        print(f"revati.{name}: {error}", file=sys.stderr)
        return 2
    statuses: list[int] = []

    def job(config: DictConfig) -> None:
        statuses.append(run(config))
        if statuses[-1] == INTERRUPTED:
            sys.exit(INTERRUPTED)  # the next job of a multirun must not start

    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(paths.conf_dir()), config_name=name)(job)()
    return max(statuses, default=0)


def help_text(name: str) -> str:
    """What the entry point accepts, from the files that define it."""
    text = (paths.conf_dir() / f"{name}.yaml").read_text()
    settings = text[text.index("_self_") + len("_self_") : text.index("\nhydra:")].strip()
    resume = "  resume=DIR goes on with an interrupted sweep.\n" if name == "sweep" else ""
    return (
        f"usage: python -m revati.{name} +model=NAME [GROUP=OPTION | SETTING=VALUE]...\n\n"
        f"  -m runs every combination of comma-separated values.\n"
        f"  --cfg job prints the configuration.\n{resume}\n"
        "Groups (conf/):\n"
        + "".join(f"  {group:10}{_accepted(group)}\n" for group in _groups(name))
        + "  The files of a group show its settings, e.g. workload.num_requests=500.\n\n"
        "Settings:\n"
        + textwrap.indent(settings, "  ")
        + "\n\n"
        + "".join(
            f"Knobs of {owner}:\n"
            + "".join(f"  {knob:30}{turned.accepted}\n" for knob, turned in knobs.items())
            for owner, knobs in {"a deployment": DEPLOYMENT_KNOBS, **ENGINE_KNOBS}.items()
        )
        + "\nObjective metrics and SLO bounds (objective.metrics, objective.slo):\n"
        + textwrap.fill(", ".join(METRIC_COLUMNS), 100, initial_indent="  ", subsequent_indent="  ")
    )


def _groups(name: str) -> list[str]:
    fields = typing.get_type_hints(schemas.SCHEMAS[name])
    return [group for group in _GROUPS if group in fields]


def rewrite(arguments: Sequence[str]) -> list[str]:
    """Make overrides that mean something clear valid for Hydra.

    Flags go first; ``model=x`` becomes ``+model=x``; the path of a config.json becomes a model option;
    ``host=x`` is ``host.name=x``; new names in open mappings need no ``+``; ``resume=DIR`` brings the
    overrides of that run back.
    """
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    others = [argument for argument in arguments if argument not in flags]
    others = _resume(others)
    rewritten = [_rewrite_one(argument) for argument in others]
    return flags + [override for argument in rewritten for override in _several_engines(argument)]


def _several_engines(argument: str) -> list[str]:
    """``engine=[a,b]``: the group takes one option, the list goes to ``engines``."""
    key, _, value = argument.partition("=")
    if key != "engine" or not value.startswith("["):
        return [argument]
    names = [name.strip() for name in value.strip("[]").split(",")]
    return [f"engine={names[0]}", f"engines=[{','.join(names)}]"]


def _rewrite_one(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-"):
        return argument
    if key.lstrip("+") == "model":
        return "+model=" + ",".join(_model_option(one) for one in value.split(","))
    if key == "host":
        return f"host.name={value}"
    if any(key.startswith(f"{mapping}.") for mapping in schemas.OPEN_MAPPINGS):
        return f"++{argument}"
    return argument


def _model_option(value: str) -> str:
    """The value itself if it names a model of ``conf/model``, else the file that it is the path of."""
    if value in paths.conf_names("model"):
        return value
    path = Path(value).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        return value
    try:
        model = ModelShape.from_config_json(path)
    except (ValueError, OSError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    return _register_model(model.name, str(path.resolve().parent), model.hf_config)


def _register_model(name: str, hub_id: str | None, hf_config: dict[str, Any]) -> str:
    """Add a model to the options of this process, under a name that Hydra's grammar takes."""
    option = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    if option in paths.conf_names("model"):
        option += "-local"
    node = {"name": option, "hub_id": hub_id, "hf_config": hf_config}
    ConfigStore.instance().store(group="model", name=option, node=node)
    return option


def _resume(arguments: list[str]) -> list[str]:
    """Replace ``resume=DIR`` by the overrides that DIR was made with; those given now win."""
    folders = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    if not folders:
        return arguments
    folder = Path(folders[-1])
    stored = folder / "config" / "overrides.yaml"
    if not stored.is_file():
        raise ConfigError(f"resume={folder}: no {stored}; accepted: the output folder of a sweep")
    model = yaml.safe_load((folder / "config" / "config.yaml").read_text())["model"]
    now = [argument for argument in arguments if not argument.startswith("resume=")]
    keys = {_key(argument) for argument in [*now, "output_dir="]}
    before = [override for override in yaml.safe_load(stored.read_text()) if _key(override) not in keys]
    for index, override in enumerate(before):
        if _key(override) == "model" and override.partition("=")[2] not in paths.conf_names("model"):
            before[index] = "+model=" + _register_model(**model)
    return [*before, *now, f"output_dir='{folder}'"]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _asks_hydra(arguments: Sequence[str]) -> bool:
    return any(argument.startswith("-") and argument not in ("-m", "--multirun") for argument in arguments)


def expand(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of each job: one without ``-m``, the product of all sweeps with it."""
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if len(overrides) == len(arguments):
        yield overrides
        return
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ConfigError(_first_line(error)) from None
    values = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [one.input_line or ""]
        for one in parsed
    ]
    for combination in itertools.product(*values):
        yield list(combination)


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose and type-check the configuration of one job.

    Raises:
        ConfigError: an unknown group option or setting, or a value of the wrong type.
    """
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(paths.conf_dir())):
            config = compose(name, overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)  # for ${hydra:…}
        with open_dict(config):
            del config["hydra"]
        if OmegaConf.is_missing(config, "model"):
            raise ConfigError(f"no model given; accepted: +model= with one of {_accepted('model')}")
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingConfigException as error:
        raise _unknown_option(error) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(schemas.SCHEMAS[name], error) from None
    return config


def _unknown_option(error: MissingConfigException) -> ConfigError:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if group not in _GROUPS:
        return ConfigError(_first_line(error))
    return ConfigError(f"unknown {group} {option!r}; accepted: {_accepted(group)}")


def _accepted(group: str) -> str:
    names = paths.conf_names(group)
    if group == "model":
        names.append("the path of a Hugging Face config.json")
    return ", ".join(names)


def _explain(schema: type, error: Exception) -> ConfigError:
    """One line that says what is accepted where the override went wrong."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None) or _named_key(str(error))
    if not key:
        return ConfigError(_first_line(error))
    parent, _, name = key.rpartition(".")
    owner = _type_at(schema, parent)
    if not dataclasses.is_dataclass(owner):
        return ConfigError(f"{key}: {_first_line(cause)}")
    fields = typing.get_type_hints(owner)
    if name not in fields:
        knobs = set(DEPLOYMENT_KNOBS).union(*ENGINE_KNOBS.values())
        near = [f"knobs.{name}"] if name in knobs else difflib.get_close_matches(name, fields, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        where = f"in {parent}" if parent else "at the top"
        return ConfigError(f"unknown setting {key!r}{hint}; accepted {where}: {', '.join(fields)}")
    if key in _GROUPS:
        return ConfigError(f"{key}: {_first_line(cause)}; accepted: {_accepted(key)}")
    return ConfigError(f"{key}: {_first_line(cause)}; accepted: {_type_name(fields[name])}")


def _named_key(message: str) -> str | None:
    match = re.search(r"Could not (?:override|append|delete) '([^']+)'|full_key: (\S+)", message)
    return next((group for group in match.groups() if group), None) if match else None


def _type_at(schema: Any, key: str) -> Any:
    for part in filter(None, key.split(".")):
        schema = typing.get_type_hints(schema).get(part) if dataclasses.is_dataclass(schema) else None
    return schema


def _type_name(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return ", ".join(field.name for field in dataclasses.fields(kind))
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if kind in names:
        return names[kind]
    return " or ".join(_type_name(one) for one in typing.get_args(kind)) if "|" in str(kind) else str(kind)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
