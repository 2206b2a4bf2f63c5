"""Run any commands on emulated GPUs and in virtual time: ``python -m revati.run -- vllm serve …``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from revati.deployment.domain_run import Failure, run_commands
from revati.engines.emulation import Emulation
from revati.interception.gpu import known_gpus, load_gpu
from revati.interception.preload import emulated_environment
from revati.search.signals import INTERRUPTED
from revati.spec import HOST_MODES, HostMode, HostSpec
from revati.virtual_time.host_table import HostTable, known_tables

_NEXT_COMMAND = "--and"
_HELP = """\
usage: python -m revati.run [NAME=VALUE ...] -- COMMAND ... [--and COMMAND ...]

Runs unmodified commands on emulated GPUs, in virtual time: their clocks and timers pass as on the
machine that is emulated, however long that takes here. Commands joined by --and run side by side on one
clock, for example a server and its client; when the last of them ends, all others are ended.

  gpu=h200          the GPU; known: {gpus}
  num_gpus=1        how many of them the commands see
  host=h200_xeon    the host whose costs are charged, or a host table's file; known: {hosts}
  mode=table        table: costs measured on that host | measured: this machine's CPU time | free: none

Examples:
  python -m revati.run num_gpus=2 -- vllm serve MODEL --load-format dummy --tensor-parallel-size 2 \\
      --and vllm bench serve --model MODEL --ready-check-timeout-sec 900 --num-prompts 100
  python -m revati.run -- python -c 'import torch; print(torch.cuda.get_device_name())'

Exit status: the last command's; 1 if another one failed or virtual time got stuck; 2 for wrong arguments.
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    emulation: Emulation
    num_gpus: int
    commands: list[list[str]]


def parse(arguments: Sequence[str]) -> Arguments:
    """Read the command line.

    Raises:
        ValueError: for what is not understood; the message names what is accepted.
    """
    arguments = list(arguments)
    if "--" not in arguments:
        raise ValueError("no command: write it behind --, as in: python -m revati.run -- vllm serve MODEL")
    split = arguments.index("--")
    settings = {"gpu": "h200", "num_gpus": "1", "host": "h200_xeon", "mode": "table"}
    for argument in arguments[:split]:
        name, equals, value = argument.partition("=")
        if not equals or name not in settings:
            raise ValueError(f"unknown argument {argument!r}; accepted: {', '.join(settings)} as NAME=VALUE")
        settings[name] = value
    commands: list[list[str]] = [[]]
    for word in arguments[split + 1 :]:
        if word == _NEXT_COMMAND:
            commands.append([])
        else:
            commands[-1].append(word)
    if not all(commands):
        raise ValueError(f"an empty command; accepted: -- COMMAND ... [{_NEXT_COMMAND} COMMAND ...]")
    gpu, host, mode = settings["gpu"], settings["host"], settings["mode"]
    if gpu not in known_gpus():
        raise ValueError(f"unknown gpu {gpu!r}; known: {', '.join(known_gpus())}")
    HostTable.load(host)
    if mode not in HOST_MODES:
        raise ValueError(f"mode={mode}: accepted are {', '.join(HOST_MODES)}")
    if not settings["num_gpus"].isdigit():
        raise ValueError(f"num_gpus={settings['num_gpus']}: accepted: 1 to {load_gpu(gpu).max_gpus_per_node}")
    emulation = Emulation(gpu, HostSpec(host, cast(HostMode, mode)))
    return Arguments(emulation, int(settings["num_gpus"]), commands)


def main() -> int:
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1 : _options_end(sys.argv)]):
        print(_HELP.format(gpus=", ".join(known_gpus()), hosts=", ".join(known_tables())), end="")
        return 0
    try:
        arguments = parse(sys.argv[1:])
        environment = emulated_environment(load_gpu(arguments.emulation.gpu), arguments.num_gpus, os.environ)
    except (ValueError, FileNotFoundError) as error:
        print(f"revati.run: {error}", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="revati-") as folder:
            environment.setdefault("VLLM_RPC_BASE_PATH", folder)  # takes what a killed server leaves
            return run_commands(arguments.commands, arguments.emulation, environment)
    except Failure as failure:
        print(f"revati.run: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _options_end(words: Sequence[str]) -> int:
    return list(words).index("--") if "--" in words else len(words)


if __name__ == "__main__":
    sys.exit(main())
