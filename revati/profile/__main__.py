"""``python -m revati.profile``: see ``--help``."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from functools import partial

from revati.profile.options import HELP, Options, UsageError, parse


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0 if arguments else 2
    try:
        options = parse(arguments)
    except UsageError as error:
        print(f"revati.profile: {error}", file=sys.stderr)
        return 2
    return profile(options)


def profile(options: Options) -> int:
    """Measure unit after unit until the budget is spent; a failed unit is reported and left out."""
    import torch

    from revati.profile.parts import Parts, query_gpu

    if not torch.cuda.is_available():
        print("revati.profile: no CUDA GPU on this machine", file=sys.stderr)
        return 2
    started = time.monotonic()
    deadline_s = started + options.budget_minutes * 60
    parts = Parts.open(options.out, options.gpu)
    failed = 0
    if "engine" in options.families:
        from revati.profile import engine

        chosen = tuple(
            e for e in engine.ENGINES if e.model in options.models and e.tp in options.tensor_parallel
        )
        print(engine.measure_all(parts, chosen, deadline_s), flush=True)
        parts.merge("engine")
    for family, unit, measure in _units(options):
        if time.monotonic() > deadline_s:
            print(f"budget of {options.budget_minutes} minutes is spent before {family}.{unit}", flush=True)
            break
        before = time.monotonic()
        try:
            rows = parts.run(family, unit, measure)
        except Exception:
            failed += 1
            print(f"{family}.{unit} failed:\n{traceback.format_exc()}", flush=True)
            continue
        finally:
            torch.cuda.empty_cache()
        state = query_gpu("temperature.gpu,clocks.sm,power.draw")
        print(f"{family}.{unit}: {rows} rows, {time.monotonic() - before:.1f} s, {state}", flush=True)
        parts.merge(family)
    print(f"done in {time.monotonic() - started:.0f} s, {failed} units failed", flush=True)
    return 1 if failed else 0


def _units(options: Options) -> list[tuple[str, str, Callable[[], list[dict[str, object]]]]]:
    """The work in order of importance: small models and tensor parallelism 1 first."""
    from revati.profile import attention, collective, gaps, kv_write, transfers
    from revati.profile.shapes import GEMM_TOKENS, LM_HEAD_TOKENS, layer_gemms, lm_head_gemm, rank_shape

    units: list[tuple[str, str, Callable[[], list[dict[str, object]]]]] = []
    if "gap" in options.families:
        units.append(("gap", "all", gaps.measure))
    if "copy" in options.families:
        units.append(("copy", "all", transfers.measure))
    seen: set[tuple[str, int, int]] = set()
    for tp in options.tensor_parallel:
        for model in options.models:
            shape = rank_shape(model, tp)
            unit = f"{model}_tp{tp}"
            if "gemm" in options.families:
                new = [s for s in layer_gemms(shape) if ("gemm", *s) not in seen]
                seen.update(("gemm", *s) for s in new)
                heads = [s for s in [lm_head_gemm(shape)] if ("gemm", *s) not in seen]
                seen.update(("gemm", *s) for s in heads)
                units.append(("gemm", unit, partial(_gemm_unit, new, heads, GEMM_TOKENS, LM_HEAD_TOKENS)))
            counts = (shape.num_q_heads, shape.num_kv_heads)
            if "attention" in options.families and ("attention", *counts) not in seen:
                seen.add(("attention", *counts))
                measure = partial(attention.measure, *counts, attention.all_batches())
                units.append(("attention", f"q{counts[0]}_kv{counts[1]}", measure))
            if "kv_write" in options.families and ("kv_write", *counts) not in seen:
                seen.add(("kv_write", *counts))
                units.append(("kv_write", f"q{counts[0]}_kv{counts[1]}", partial(kv_write.measure, *counts)))
    if "collective" in options.families:
        gpus = collective.gpu_count()
        units.append(("collective", f"gpus{gpus}", partial(collective.measure, gpus)))
    return units


def _gemm_unit(
    layers: list[tuple[int, int]],
    heads: list[tuple[int, int]],
    layer_tokens: tuple[int, ...],
    head_tokens: tuple[int, ...],
) -> list[dict[str, object]]:
    from revati.profile import gemm

    return gemm.measure(layers, layer_tokens) + gemm.measure(heads, head_tokens)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
