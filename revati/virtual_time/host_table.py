"""Host tables: what each phase of serving costs on a target host, measured there by a calibration.

A table (``conf/host/<name>.yaml``) is made by ``python -m revati.profile.host_fit``. Per phase and kind it
holds a linear model in µs:

    latency + slowdown · (base + requests · per_request + tokens · per_token + prefills · per_prefill
                          + layers · per_layer)

A host that shares its cores with neighbours sits on slower plateaus for seconds or for good, so a table
names several *slowdowns* (``quiet``, ``typical``, ``busy``: quantiles over the calibration, or over
machines) and the one that it uses. The latency of waking a thread doesn't follow it. A file that names a
``base`` table changes only what it says, such as the slowdown, single kinds of ``phases``, or by
``slowdown_of`` and ``spread_of`` those of single ones; ``factor_of`` are factors on the slowdown.  A
``spread`` are the 10 %, 50 % and 90 % quantiles of a cost relative to the model, and of a host that stalls
two more numbers: the share of the times when it does, and what such a time costs in the mean, relative to
the model, too.  ``in_common`` says which shares of their variance a process's phases have in common, by for
how many steps.  ``frame_chunks`` are `ChunkCosts`; the phases of a table without them hold those of the
engine that it was calibrated on.

Where each pipeline stage is an engine with a scheduler of its own, a table has a section ``pipeline`` of
phases, which replace those of the same name where there are several stages.  ``pipeline_slowdown`` is that
of the machine that they were measured on, if it is not 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from revati import paths
from revati.virtual_time.spread import Spread

PHASES = {
    "input": "the engine core takes one new request out of its queue (tokens: its prompt)",
    "schedule": "from the step's begin to the scheduler's output",
    "execute": "from there to the end of execute_model: the launches of the forward pass",
    "sample": "sample_tokens, and from there to the wait for an earlier step",
    "dispatch": "the core hands a step to workers in processes of their own",
    "dispatch_sample": "likewise its sampling",
    "worker_ipc": "a message between the core and a worker, or between workers, on its way",
    "worker_unpack": "a worker unpacks the prompts in a step's message, if there are any",
    "executed": "a worker in a process of its own is back from execute, until it can begin to sample",
    "sampled": "likewise from sampling, until it can begin with the next step",
    "send": "a pipeline stage hands its hidden states to the next one",
    "receive": "in place of sample where a stage only takes over the sampled tokens",
    "broadcast": "tensor-parallel ranks take new requests, if there are any, from the first of them",
    "requests_receive": "a pipeline stage takes the new requests from the stage before, if there are any",
    "requests_send": "and hands them to the next one",
    "hidden_receive": "a pipeline stage takes hidden states from the stage before",
    "tokens_send": "a pipeline stage hands sampled tokens to the next one",
    "wake": "the GPU has finished while the core waited, until the update begins",
    "collect": "instead of wake: the outputs were ready, nothing to wait for",
    "update": "update_from_output (requests: of the updated step)",
    "output": "outputs into the output queue, and round the loop to the next step",
    "arrival": "how late an open-loop client in the frontend's event loop sends a request",
    "frontend_submit": "the client's call until its message is sent (kind busy: back to back)",
    "ipc": "message sent until the core has it (idle: waiting for work; busy: in its input queue)",
    "unpack": "likewise behind another message, from when the core has that one",
    "output_ipc": "outputs sent until the frontend begins with them",
    "frontend_busy": "the frontend handles a batch of outputs, up to the last client's token",
    "frontend_token": "outputs made until a client has its token, mean over the batch, frontend idle",
}
KINDS = ("full", "piecewise", "compiled", "eager", "idle", "busy", "any")
TERMS = ("base_us", "per_request_us", "per_token_us", "per_prefill_us", "per_layer_us")
LATENCY = "latency_us"
ARRIVAL = "arrival"  # a client's timers may also be early

# What stands in where a calibration has no such kind.
_NEAREST = {
    "full": ("eager", "any", "idle"),
    "piecewise": ("compiled", "eager", "any", "idle"),
    "compiled": ("eager", "any", "idle"),
    "eager": ("compiled", "any", "idle"),
    "idle": ("any", "full", "eager"),
    "busy": ("any", "idle", "full"),
    "any": ("busy", "idle", "full"),
}
# Phases of messages know only whether the core is idle: every kind of running step is busy.
_MESSAGES = ("input", "ipc", "frontend_submit")

_RANKS = range(1, 65)
# Tables are long, and an engine waits for its own when it starts.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Coefficients = tuple[float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class ChunkCosts:
    """Of chunks of Python's frame stack, which forward passes begin (see `revati.engines.vllm.frame_chunks`).

    Args:
        us: one of them, mapped, touched and unmapped.
        engine_core_words: on the stack when a forward pass begins in the engine core's process; as it is
            with `vllm serve` 0.26 on Python 3.12 unless the table says something else.
        worker_words: likewise in a worker's own process.
    """

    us: float
    engine_core_words: int = 330
    worker_words: int = 231


class HostTable:
    """Phase costs of one host; `load` reads a named one.

    Args:
        name: the table's name, for messages.
        phases: phase → kind → coefficients by the names in `TERMS` and `LATENCY` (absent: 0).
        slowdown: factor on every coefficient but the latency.
        slowdown_of: phase → kind → its own slowdown.
        factor_of: phase → kind → factor on the slowdown, where it has none of its own.
        spread_of: phase → kind → its own spread.
        tensor_parallel: phase → kind (or "any") → ranks → factor (workers of their own processes, the
            slowest of them); between given numbers of ranks the next smaller one counts.
        measured: ``cpu_factor`` by which the host's phases take longer than the CPU time of the same code on
            a machine whose speed probe took ``probe_ns``.
        own_schedulers: each pipeline stage has one.
        in_common: shares of a spread's variance that the phases of a process have in common, by for how many
            steps (see `CommonDraws`).
        frame_chunks: fields of `ChunkCosts`, of which the slowdown is a factor on the time.
    """

    def __init__(
        self,
        name: str,
        phases: dict[str, dict[str, dict[str, Any]]],
        slowdown: float = 1.0,
        tensor_parallel: dict[str, dict[str, dict[int, float]]] | None = None,
        measured: dict[str, float] | None = None,
        slowdown_of: dict[str, dict[str, float]] | None = None,
        spread_of: dict[str, dict[str, list[float]]] | None = None,
        own_schedulers: bool = False,
        factor_of: dict[str, dict[str, float]] | None = None,
        in_common: dict[int, float] | None = None,
        frame_chunks: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.slowdown, self.own_schedulers = name, slowdown, own_schedulers
        self.in_common = in_common or {}
        chunks = ChunkCosts(**frame_chunks) if frame_chunks else None
        self.frame_chunks = chunks and replace(chunks, us=chunks.us * slowdown)
        self.has_worker_processes = "dispatch" in phases
        own, spreads, relative = slowdown_of or {}, spread_of or {}, factor_of or {}
        self._measured = measured
        unknown = sorted((set(phases) | set(own) | set(spreads) | set(relative)) - set(PHASES))
        if unknown:
            raise ValueError(f"host table {name!r}: unknown phase {unknown[0]!r}; known: {', '.join(PHASES)}")
        self._costs: dict[tuple[str, str], Coefficients] = {}
        self.spread: dict[tuple[str, str], Spread] = {}  # by phase and kind, where it is known
        for phase, by_kind in phases.items():
            for kind in KINDS:
                wanted = kind
                if phase in _MESSAGES and kind in ("full", "piecewise", "compiled", "eager"):
                    wanted = "busy"
                found = next((k for k in (wanted, *_NEAREST[wanted]) if k in by_kind), None)
                if found is not None:
                    usual = slowdown * float(_of_kind(relative.get(phase, {}), kind, 1.0))
                    factor = float(_of_kind(own.get(phase, {}), kind, usual))
                    terms = [float(by_kind[found].get(term, 0.0)) * factor for term in TERMS]
                    terms[0] += float(by_kind[found].get(LATENCY, 0.0))
                    self._costs[phase, kind] = (terms[0], terms[1], terms[2], terms[3], terms[4])
                    spread = _of_kind(spreads.get(phase, {}), kind, by_kind[found].get("spread"))
                    if spread is not None:
                        self.spread[phase, kind] = Spread.of(spread, phase != ARRIVAL)
        self._tensor_parallel = {
            (phase, kind): {
                ranks: _factor(by_kind.get(kind, by_kind.get("any", {})), ranks) for ranks in _RANKS
            }
            for phase, by_kind in (tensor_parallel or {}).items()
            for kind in KINDS
        }

    @classmethod
    def load(
        cls, name: str, folder: Path | None = None, slowdown: float | None = None, pipelined: bool = False
    ) -> HostTable:
        """Read a table.

        Args:
            name: ``<name>.yaml`` of the folder, or the path of a file with that suffix.
            folder: default: conf/host
            slowdown: instead of the file's own
            pipelined: there are several pipeline stages

        Raises:
            ValueError: there is no such table, or its file is wrong; the message names the known ones.
        """
        folder = folder or paths.conf_dir() / "host"
        content = read_table(name, folder)
        slowdown = content.get("slowdown") if slowdown is None else slowdown
        if slowdown is None:
            levels, level = content.get("slowdowns", {}), content.get("level")
            if level not in levels:
                known = ", ".join(map(str, levels)) or "nothing"
                raise ValueError(f"host table {name!r}: level {level!r} is none of {known}")
            slowdown = levels[level]
        if not float(slowdown) > 0:
            raise ValueError(f"host table {name!r}: slowdown must be greater than 0, got {slowdown!r}")
        pipeline: dict[str, Any] = content.get("pipeline", {}) if pipelined else {}
        of_pipeline = {"any": 1.0 / float(content.get("pipeline_slowdown", 1.0))}
        return cls(
            name,
            content["phases"] | pipeline,
            float(slowdown),
            content.get("tensor_parallel"),
            content.get("measured"),
            content.get("slowdown_of"),
            content.get("spread_of"),
            bool(pipeline),
            content.get("factor_of", {}) | dict.fromkeys(pipeline, of_pipeline),
            content.get("in_common"),
            content.get("frame_chunks"),
        )

    def phase_us(
        self,
        phase: str,
        kind: str = "any",
        num_reqs: int = 0,
        num_tokens: int = 0,
        num_prefills: int = 0,
        num_layers: int = 0,
        tp: int = 1,
    ) -> float:
        """Cost of a phase in µs.

        Args:
            phase: one of `PHASES`.
            kind: how the model runs in the step: "full" (one CUDA graph), "piecewise" (a graph a layer),
                "compiled" (no graph), "eager", or "idle" (nothing scheduled; for messages: the core waits).
            num_reqs: requests in the step's batch (in the updated step's, for wake, update and output).
            num_tokens: prompt tokens that the step computes, or a message's prompt length.
            num_prefills: requests of the step that compute prompt tokens.
            num_layers: decoder layers that one worker runs.
            tp: ranks that are processes of their own and work on the phase together.

        Raises:
            ValueError: a phase or kind that doesn't exist, or that the calibration didn't visit.
        """
        base, per_request, per_token, per_prefill, per_layer = self._terms(phase, kind)
        cost = (
            base
            + per_request * num_reqs
            + per_token * num_tokens
            + per_prefill * num_prefills
            + per_layer * num_layers
        )
        return cost if tp == 1 else cost * self._tp_factor(phase, kind, tp)

    def costs_us(
        self, phase: str, kind: str, shapes: NDArray[np.int64], num_layers: int = 0, tp: int = 1
    ) -> NDArray[np.float64]:
        """`phase_us` of many steps, (n,).

        Args:
            shapes: (n, 3), requests, prompt tokens and prefills of each.
        """
        base, per_request, per_token, per_prefill, per_layer = self._terms(phase, kind)
        cost = base + shapes @ np.array([per_request, per_token, per_prefill]) + per_layer * num_layers
        return np.asarray(cost * self._tp_factor(phase, kind, tp))

    def _terms(self, phase: str, kind: str) -> Coefficients:
        try:
            return self._costs[phase, kind]
        except KeyError:
            raise ValueError(self._unknown(phase, kind)) from None

    def _tp_factor(self, phase: str, kind: str, tp: int) -> float:
        factors = self._tensor_parallel.get((phase, kind))
        return 1.0 if factors is None else factors[min(tp, _RANKS[-1])]

    def _unknown(self, phase: str, kind: str) -> str:
        if phase not in PHASES:
            return f"unknown host phase {phase!r}; known: {', '.join(PHASES)}"
        if kind not in KINDS:
            return f"unknown kind {kind!r} of host phase {phase!r}; known: {', '.join(KINDS)}"
        return f"host table {self.name!r} has no costs for phase {phase!r}; it has {', '.join(self.phases)}"

    def cpu_factor(self, probe_ns: float) -> float:
        """Time of a phase on this host per CPU time of its code on a machine with this speed probe.

        Raises:
            ValueError: nobody compared this host with another machine.
        """
        if self._measured is None:
            raise ValueError(f"host table {self.name!r} has no 'measured' factor; use host.mode=table")
        return self._measured["cpu_factor"] * self.slowdown * self._measured["probe_ns"] / probe_ns

    @property
    def phases(self) -> list[str]:
        """The phases that the table has costs for."""
        return sorted({phase for phase, _ in self._costs})


def read_table(name: str, folder: Path | None = None) -> dict[str, Any]:
    """What a table's file says, completed by those that it is based on; raises as `HostTable.load`."""
    content = _read(name, folder or paths.conf_dir() / "host")
    if "base" not in content:
        return content
    of_base = read_table(str(content["base"]), folder)
    phases = dict(of_base["phases"])
    for phase, kinds in content.get("phases", {}).items():
        phases[phase] = {**phases.get(phase, {}), **kinds}
    return of_base | content | {"phases": phases}


def base_of(name: str, folder: Path | None = None) -> str:
    """The table with phases of its own that a table is based on; itself if it is based on none."""
    base = _read(name, folder or paths.conf_dir() / "host").get("base")
    return name if base is None else base_of(str(base), folder)


def name_for(host: str, engine: str) -> str:
    """The table of a host for an engine: vLLM's has the host's name; a file is one engine's already."""
    return host if engine == "vllm" or host.endswith(".yaml") else f"{host}_{engine}"


def known_tables(folder: Path | None = None) -> list[str]:
    """Names of the tables in a folder (default: conf/host)."""
    return sorted(path.stem for path in (folder or paths.conf_dir() / "host").glob("*.yaml"))


def _read(name: str, folder: Path) -> dict[str, Any]:
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(known_tables(folder)) or f"none in {folder}"
        raise ValueError(f"unknown host table {name!r}; known: {known}")
    content = yaml.load(path.read_text(), _LOADER)
    if not isinstance(content, dict) or not ("phases" in content or "base" in content):
        raise ValueError(f"{path}: a host table holds 'phases', or a 'base' and a 'slowdown'")
    return content


def _of_kind(by_kind: Mapping[str, Any], kind: str, default: Any) -> Any:
    return by_kind.get(kind, by_kind.get("any", default))


def _factor(given: dict[int, float], ranks: int) -> float:
    fitting = [count for count in given if count <= ranks]
    return float(given[max(fitting)]) if fitting else 1.0
