"""Add the costs of a pipeline's stages to SGLang's host table, from the step logs of measured runs.

    python -m revati.profile.sglang_pipeline_fit --run validation/runs/sglang-… --table conf/host/….yaml

Each stage has a scheduler of its own, in another loop than an engine without stages: nothing overlaps, the
stages exchange lists of requests, hidden states and sampled tokens, and prefills run without graphs.  So
the table's section ``pipeline`` holds these phases again.  All stages count alike.  Only the host's own work
is fitted: waits for another stage or for a GPU are left out, by what the stages' logs say about each other.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import yaml

from revati.profile.host_model import Phases, fit
from revati.profile.host_samples import Samples
from revati.profile.sglang_host_logs import inputs

Array = npt.NDArray[np.float64]
_LEAST = 20  # observations of a phase and kind
_NO_WAIT_US = 150.0  # a turn whose waits for earlier sends, or for a GPU, add up to less has waited for none
_CLEAR_US = 300.0  # a message is there, or is waited for, if it is so by this much
HEADER = "# Made by python -m revati.profile.sglang_host_fit; see revati/virtual_time/host_table.py.\n"


class TooFewTurnsError(ValueError):
    """The logs don't tell all costs of a stage; the message names those that are missing."""


class Stage:
    """One stage's step log: a row a turn of a microbatch, times in µs."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns
        self.launched = columns["requests"] > 0
        self.processed = columns["processed_requests"] > 0
        self.prompt = columns["prefill_requests"] > 0
        # Turns that have waited for no earlier send.
        self.free = columns["send_wait_us"] < _NO_WAIT_US

    def at(self, name: str) -> Array:
        times: Array = self.columns[f"{name}_us"]
        return times

    def us(self, begin: str, end: str) -> Array:
        result: Array = self.at(end) - self.at(begin)
        return result


def load_stages(folder: Path) -> list[Stage]:
    """The stages of a run in `revati.validate`'s format, the first one first."""
    table = pq.read_table(folder / "steps.parquet")
    modes = ("mode", "processed_mode")
    columns = {
        name: np.array(table[name].to_pylist(), object if name in modes else np.float64)
        for name in table.column_names
    }
    stages = range(int(columns["stage"].max()) + 1)
    return [
        Stage({name: column[columns["stage"] == stage] for name, column in columns.items()})
        for stage in stages
    ]


def add_samples(found: dict[tuple[str, str], Samples], stages: list[Stage], layers: float) -> Array:
    """Add the costs observed in one run by phase and kind.

    Returns:
        How long each message was on its way in µs.
    """

    def add(phase: str, kind: str, cost_us: Array, requests: Array, prefills: Array | float = 0.0) -> None:
        x = np.zeros((len(cost_us), 5))
        x[:, 0], x[:, 1], x[:, 3], x[:, 4] = 1.0, requests, prefills, layers
        found.setdefault((phase, kind), Samples()).add(cost_us, x, np.ones(len(cost_us)))

    for number, stage in enumerate(stages):
        first, last = number == 0, number == len(stages) - 1
        silent, requests = stage.columns["received"] == 0, stage.columns["requests"]
        listed = "input_end" if last else "requests_sent"
        receive_us, take_us = stage.us("recv_begin", "recv_end"), stage.us("recv_end", "input_end")
        silent_us = float(np.median(receive_us[silent]))
        # The rest of a turn's beginning; what new requests cost there is theirs.
        turn_us = float(np.median(take_us[silent])) + stage.us(listed, "schedule_end")
        if first:
            turn_us += silent_us
        else:
            use = silent & np.isfinite(receive_us)
            add("requests_receive", "any", receive_us[use], requests[use])
        for kind, use, cost_us in inputs(receive_us - silent_us + take_us, stage.columns["received"]):
            add("input", kind, cost_us[use], requests[use])
        if not last:
            use = silent & stage.free
            add("requests_send", "any", stage.us("input_end", "requests_sent")[use], requests[use])
        for kind, use in (
            ("idle", ~stage.launched),
            ("full", stage.launched & ~stage.prompt),
            ("eager", stage.launched & stage.prompt),
        ):
            prefills = stage.columns["prefill_requests"][use]
            add("schedule", kind, turn_us[use], requests[use], prefills)
        # From the hidden states (or the schedule) to the exchange of tokens.
        begin = "schedule_end" if first else "hidden_end"
        execute_us = stage.us(begin, "outputs_begin")
        use = stage.free & stage.launched
        decode, prefill = use & ~stage.prompt, use & stage.prompt
        add("execute", "full", execute_us[decode], requests[decode])
        count = stage.columns["prefill_requests"][prefill]
        add("execute", "eager", execute_us[prefill], np.zeros(len(count)), count)
        requests = stage.columns["processed_requests"]
        for kind, mode in (("full", "DECODE"), ("eager", "EXTEND")):
            use = stage.processed & (stage.columns["processed_mode"] == mode)
            add("update", kind, stage.us("wake", "process_end")[use], requests[use])
        # The first and the last stage wait for a GPU there, unless the tokens have been there before.
        if len(stages) == 2 or not (first or last):
            collect_us, use = stage.us("outputs_end", "process_begin"), stage.processed
            if first or last:
                use = use & (collect_us < _NO_WAIT_US)
            add("collect", "any", collect_us[use], requests[use])
        use, ends = stage.processed, stage.us("process_end", "end")
        if not last:
            sent = np.isfinite(stage.at("hidden_sent"))
            ends = np.where(sent, ends - stage.us("hidden_sent_begin", "hidden_sent"), ends)
        add("output", "any", ends[use], requests[use])
    return _exchanges(stages, add)


def _exchanges(stages: list[Stage], add: Any) -> Array:
    """Hidden states and tokens from stage to stage; returns how long messages are on their way in µs.

    A receiver that has waited is done so much after the sender began as a message takes on its way and to
    be taken over; one that comes later needs only the latter.
    """
    ways: list[Array] = []
    for sender, receiver in itertools.pairwise(stages):
        sent, begun = sender.launched, receiver.launched  # the same batches, in the same order
        begin, end = receiver.at("hidden_begin")[begun], receiver.at("hidden_end")[begun]
        sending, handed = sender.at("hidden_sent_begin")[sent], sender.at("hidden_sent")[sent]
        there, waited = begin > handed + _CLEAR_US, begin < sending - _CLEAR_US
        take_us = (end - begin)[there]
        add("hidden_receive", "any", take_us, np.ones(len(take_us)))
        ways.append((end - sending)[waited] - np.median(take_us))
    all_ways = np.concatenate(ways)
    way_us = float(np.median(all_ways))
    for sender in stages[:-1]:
        use = sender.launched
        cost_us = sender.us("hidden_sent_begin", "hidden_sent")[use] - way_us
        add("send", "any", cost_us, np.ones(len(cost_us)))
    for number, sender in enumerate(stages):
        use = np.isfinite(sender.at("outputs_sent"))
        cost_us = sender.us("outputs_begin", "outputs_sent")[use] - way_us
        add("tokens_send", "any", cost_us, np.ones(len(cost_us)))
        receiver = stages[(number + 1) % len(stages)]
        sending, handed, begin, end = _token_messages(sender, receiver, number == len(stages) - 1)
        take_us = (end - begin)[begin > handed + _CLEAR_US]
        add("receive", "any", take_us, np.ones(len(take_us)))
    return all_ways


def _token_messages(sender: Stage, receiver: Stage, launches: bool) -> tuple[Array, Array, Array, Array]:
    """Begin and end of sending and of receiving the tokens of each batch.

    The last stage sends those of the batch that it has just launched, the others hand on, a turn after they
    have processed a batch, what they received.
    """
    handing = np.isfinite(sender.at("outputs_sent"))
    begins, ends = sender.at("outputs_begin")[handing], sender.at("outputs_sent")[handing]
    rows = receiver.processed
    begin, end = receiver.at("outputs_sent")[rows], receiver.at("outputs_end")[rows]
    begin = np.where(np.isfinite(begin), begin, receiver.at("outputs_begin")[rows])
    if not launches:
        at = np.searchsorted(begins, sender.at("process_end")[sender.processed])
        use = at < len(begins)
        count = min(int(use.sum()), len(begin))
        begins, ends = begins[at[use]], ends[at[use]]
    else:
        count = min(len(begins), len(begin))
    return begins[:count], ends[:count], begin[:count], end[:count]


def pipeline_phases(folders: Sequence[Path], layers: int) -> Phases:
    """The table's section for engines of several stages with ``layers`` decoder layers each.

    Raises:
        TooFewTurnsError: some costs were observed too seldom.
    """
    samples: dict[tuple[str, str], Samples] = {}
    ways = [add_samples(samples, load_stages(folder), layers) for folder in folders]
    counts = {of: sum(map(len, sample.cost_us)) for of, sample in samples.items()}
    if counts.get(("input", "busy"), 0) < _LEAST:  # hardly ever several at once: the first one stands for all
        counts.pop(("input", "busy"), None)
    if rare := [
        f"{phase} ({kind}): {counts[phase, kind]}" for phase, kind in counts if counts[phase, kind] < _LEAST
    ]:
        names = ", ".join(folder.name for folder in folders)
        raise TooFewTurnsError(f"{names}: fewer than {_LEAST} observations of {', '.join(rare)}")
    phases = fit(samples, least=_LEAST)
    # A prefill's requests are all prompts, so the fit cannot tell them from decodes without a graph.
    for by_kind in (phases["schedule"], phases["update"]):
        prompt, decode_us = by_kind["eager"], by_kind["full"].get("per_request_us", 0.0)
        prompt["per_prefill_us"] = round(prompt["per_request_us"] - decode_us, 4)
        prompt["per_request_us"] = decode_us
    # The step log's waits are SGLang's own; where a scheduler has waited it goes on at once.
    phases["wake"] = copy.deepcopy(phases["collect"])
    phases["worker_ipc"] = {"any": {"latency_us": round(float(np.median(np.concatenate(ways))), 1)}}
    return phases


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="of one engine with stages")
    parser.add_argument("--table", type=Path, required=True, help="conf/host/<name>_sglang.yaml")
    arguments = parser.parse_args(argv)
    runs = [json.loads((folder / "run.json").read_text()) for folder in arguments.run]
    engines = {(int(run["num_layers"]), int(run["pipeline_parallel_size"])) for run in runs}
    if len(engines) > 1:
        parser.error(f"--run: runs of one engine, not of {len(engines)}")
    layers, stages = engines.pop()
    table = yaml.safe_load(arguments.table.read_text())
    table["pipeline"] = pipeline_phases(arguments.run, layers // stages)
    records = [
        {
            "recorded_at": run["recorded_at"],
            "host": run["environment"]["host"],
            "engine": f"{run['engine']} {run['engine_version']}",
            "model": run["model"],
            "layers": run["num_layers"],
            "pipeline_parallel_size": run["pipeline_parallel_size"],
            "run": folder.name,
        }
        for run, folder in zip(runs, arguments.run, strict=True)
    ]
    others = [one for one in table["provenance"] if "pipeline_parallel_size" not in one]
    table["provenance"] = [*others, *records]
    text = yaml.safe_dump(table, sort_keys=False, width=110, default_flow_style=None)
    arguments.table.write_text(HEADER + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
