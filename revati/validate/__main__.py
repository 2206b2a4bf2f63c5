"""Compare emulated with measured runs.

    python -m revati.validate [DIR ...] [runs=GLOB] [host=NAME] [calibrate=1|0]
                              [mode=table|measured|free] [jobs=N] [repeats=N] [out=FOLDER]
                              [emulate=1|0|GLOB] [baselines=FOLDER] [predictor=NAME]

A DIR (default: validation/runs of the project) holds one folder a measured run: run.json (engine, settings)
and requests.parquet (a row a request); NAME_rep2, NAME_rep3, … repeat NAME. Recorded arrivals and lengths are
replayed through an emulated deployment with the recorded settings. A manifest.yaml in it may name runs that
were looked at during development, and the host table of the machines.

FOLDER (default: outputs/validation) gets SUMMARY.md, STEPS.md (engine steps of emulation and measurement
compared by kind), validation.csv (a row a case, metric and predictor), emulated/<case>/ (requests.parquet,
steps.parquet, run.json) and trials/ (logs and timelines of the emulation).

    runs       which of the runs, by name (default: *)
    host       the host table of conf/host (default: h200_xeon_contended, the machines of the shared runs)
    calibrate  1: a table for each case, calibrated on the step logs of the other runs of its engine where
               there are any (default); 0: the tables as they are
    mode       where host time comes from (default: table)
    jobs       emulations at a time (default: 1)
    repeats    emulate each case so often, with other draws of host time, and take medians as of the measured
               repeats (default: 1)
    emulate    0: only compare with what FOLDER/emulated already holds; a GLOB: emulate cases of such names,
               with hosts calibrated on all of the runs, and take the others from there
    baselines  folder of *.csv with predictions by others (default: validation/predictions of the project)
    predictor  emulate every case on the host given, whatever is known of its machine, and write nothing but
               the metrics, into NAME.csv of the baselines: a predictor of its own in later summaries;
               host=others is rented_xeon, made from all machines but the case's own
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from revati.search.signals import INTERRUPTED, interruptible
from revati.spec import DeploymentSpec
from revati.validate.calibration import calibrated
from revati.validate.errors import write_errors
from revati.validate.machines import machines_of, unseen
from revati.validate.metrics import METRICS
from revati.validate.options import OTHERS, Options
from revati.validate.predictions import (
    EMULATED,
    Emulate,
    Prediction,
    emulate_all,
    read_csv,
    stored,
    write_csv,
)
from revati.validate.runs import Case, ValidationError, read_cases
from revati.validate.steps_page import write_steps
from revati.validate.summary import summary
from revati.workload import Workload


def validate(options: Options, cases: Sequence[Case], emulate: Emulate | None) -> Mapping[str, Prediction]:
    """Emulate the cases that the options name, if `emulate` is given; compare, write all files.

    Returns the emulations, stored ones among them.
    """
    new = _emulate_named(cases, emulate, options) if emulate else {}
    emulated = stored([case for case in cases if case.name not in new], options.out) | new
    predictions = {EMULATED: emulated}
    if options.baselines and options.baselines.is_dir():
        predictions |= {path.stem: read_csv(path) for path in sorted(options.baselines.glob("*.csv"))}
    write_errors(cases, predictions, options.out / "validation.csv")
    (options.out / "SUMMARY.md").write_text(summary(cases, predictions))
    write_steps(cases, options.out / EMULATED, options.out / "STEPS.md")
    return emulated


def predict(options: Options, cases: Sequence[Case], emulate: Emulate) -> Mapping[str, Prediction]:
    """Emulate the cases knowing nothing of their machines, and write that as another predictor's.

    What its file says of other cases stays.
    """
    assert options.predictor
    assert options.baselines
    path = options.baselines / f"{options.predictor}.csv"
    if options.host.name == OTHERS:
        machines = machines_of(read_cases(options.folders))
        unknown = unseen(cases, machines, (options.out / "hosts_of_others").resolve())
    else:
        unknown = [replace(case, host=None) for case in cases]
    predictions = _emulate_named(unknown, emulate, options, path.stem)
    before = read_csv(path) if path.is_file() else {}
    compared = {
        case: replace(one, metrics={name: one.metrics[name] for name in METRICS if name in one.metrics})
        for case, one in predictions.items()
    }
    write_csv(before | compared, path)
    return predictions


def _emulate_named(
    cases: Sequence[Case], emulate: Emulate, options: Options, folder: str = ""
) -> dict[str, Prediction]:
    return emulate_all(
        [case for case in cases if fnmatch.fnmatch(case.name, options.emulate)],
        emulate,
        options.host,
        options.out / folder,
        jobs=options.jobs,
        repeats=options.repeats,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 1 if no run could be emulated, 2 for wrong arguments, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        options = Options.parse(arguments)
        cases = read_cases(options.folders, options.runs)
        emulated = _emulated(options, cases)
    except ValidationError as error:
        print(f"revati.validate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"revati.validate: stopped by {interrupt or 'Ctrl-C'}", file=sys.stderr)
        return INTERRUPTED
    if options.predictor:
        print(f"{options.baselines}/{options.predictor}.csv has the metrics of {len(emulated)} cases")
    else:
        print((options.out / "SUMMARY.md").read_text())
        print(f"All metrics: {options.out / 'validation.csv'}")
    return 0 if any(not prediction.skipped for prediction in emulated.values()) else 1


def _emulated(options: Options, cases: Sequence[Case]) -> Mapping[str, Prediction]:
    if not options.emulate:
        return validate(options, cases, None)
    from revati.deployment.mixed import TemplateClient, TemplateServer
    from revati.engines.warm import engine_names

    if options.calibrate and not options.predictor:
        hosts = (options.out / "hosts").resolve()
        cases = [replace(case, calibrated=calibrated(case, options.host.name, hosts)) for case in cases]
    engines = sorted({case.description["engine"] for case in cases} & set(engine_names()))
    with interruptible(), TemplateServer(options.out / "logs", engines or ["vllm"]) as server:

        def emulate(spec: DeploymentSpec, workload: Workload, folder: Path) -> Any:
            return TemplateClient(server.socket_path).run(spec, workload, folder)

        return (predict if options.predictor else validate)(options, cases, emulate)


if __name__ == "__main__":
    sys.exit(main())
