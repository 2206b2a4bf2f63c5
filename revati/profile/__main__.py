"""``python -m revati.profile``: see ``--help``."""

from __future__ import annotations

import sys
import time
import traceback

from revati.profile.check import check
from revati.profile.options import HELP, PRECISIONS, HostOptions, Options, UsageError, parse
from revati.profile.parts import Parts
from revati.profile.plan import Known, engines_within, show, units_of, within
from revati.profile.session import Session
from revati.timing import db
from revati.timing.attention_features import Heads


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0 if arguments else 2
    try:
        options = parse(arguments)
    except UsageError as error:
        print(f"revati.profile: {error}", file=sys.stderr)
        return 2
    if isinstance(options, HostOptions):
        from revati.profile.host import calibrate

        return calibrate(options)
    return profile(options)


def profile(options: Options) -> int:
    """Measure unit after unit until the budget is spent; a failed unit is reported and left out."""
    known = Known()
    if not options.again and options.gpu in db.known_gpus(options.out):
        known = Known.of(db.read(options.out, options.gpu))
    budget_s = options.budget_minutes * 60
    if options.plan:
        print(show(*within(units_of(options, known), budget_s)))
        return 0

    import torch

    if not torch.cuda.is_available():
        print("revati.profile: no CUDA GPU on this machine", file=sys.stderr)
        return 2
    started = time.monotonic()
    deadline_s = started + budget_s
    parts = Parts.open(options.out, options.gpu)
    session = Session(parts.folder, parts.provenance)
    failed = 0
    if options.check != "only":
        if precisions := engines_within(options, known):
            _record_engines(options, precisions, parts, session, deadline_s)
        chosen, rest = within(units_of(options, known), deadline_s - time.monotonic())
        print(show(chosen, rest), flush=True)
        for unit in [*chosen, *rest]:
            if time.monotonic() > deadline_s:
                print(f"budget of {options.budget_minutes} minutes is spent before {unit.family}.{unit.name}")
                break
            began_s = time.monotonic()
            try:
                rows = parts.run(unit.file, unit.part, unit.measure)
            except Exception:
                failed += 1
                print(f"{unit.family}.{unit.name} failed:\n{traceback.format_exc()}", flush=True)
                continue
            finally:
                torch.cuda.empty_cache()
            line = session.log(f"{unit.family}.{unit.name}", began_s, rows=rows)
            print(f"{line['unit']}: {rows} rows, {line['seconds']} s, {line['gpu_after']}", flush=True)
            parts.merge(unit.file)
    if options.check != "no":
        failed += _check(options, session)
    print(f"done in {time.monotonic() - started:.0f} s, {failed} units failed or drifted", flush=True)
    return 1 if failed else 0


def _record_engines(
    options: Options, precisions: tuple[str, ...], parts: Parts, session: Session, deadline_s: float
) -> None:
    from revati.profile import engine

    began_s = time.monotonic()
    chosen = tuple(
        one
        for one in engine.ENGINES
        if one.model in options.models and one.tp in options.tensor_parallel and one.precision in precisions
    )
    rows = engine.measure_all(parts, chosen, deadline_s)
    session.log("engine", began_s, rows=rows)
    print(rows, flush=True)
    parts.merge("engine")


def _check(options: Options, session: Session) -> int:
    """Measure a sample again; returns how many families drifted."""
    from revati.profile import attention, gemm
    from revati.profile.attention_batches import Batch

    began_s = time.monotonic()

    def batches(heads: Heads, rows: list[dict[str, object]]) -> list[dict[str, object]]:
        return attention.measure(heads, [Batch.of_row(row) for row in rows])

    dtypes = [PRECISIONS[one] for one in options.precisions]
    drifts = check(db.read(options.out, options.gpu), options.families, gemm.measure, batches, dtypes)
    session.log("check", began_s, drift=[str(one) for one in drifts])
    for one in drifts:
        print(one, flush=True)
    return sum(not one.ok for one in drifts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
