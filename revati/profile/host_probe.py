"""How fast a host is: short Python loops and CUDA calls, to compare machines and moments.

    python -m revati.profile.host_probe [--out FILE]

Every number is the best of several repeats, so that it tells of the machine rather than of neighbours;
`worst` beside it tells of them.
"""

import argparse
import json
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAUNCHES = 300  # fewer than the launch queue holds, so that the host never waits for the GPU


def best_and_worst_us(action: Callable[[], Any], calls: int = 1, repeats: int = 7) -> dict[str, float]:
    """Time an action that makes a number of calls; return µs a call."""
    action()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append((time.perf_counter() - begin) / calls * 1e6)
    return {"best": min(times), "worst": max(times)}


def python_probes() -> dict[str, dict[str, float]]:
    """µs per iteration of interpreter work: loops, calls, dictionaries, objects, pickling."""

    def called(value: int) -> int:
        return value + 1

    def loop() -> None:
        total = 0
        for i in range(500_000):
            total += i

    def calls() -> None:
        for i in range(200_000):
            called(i)

    def dictionary() -> None:
        table: dict[int, int] = {}
        for i in range(300_000):
            table[i] = table.get(i - 1, 0)

    def pickled() -> None:
        pickle.loads(pickle.dumps([(i, str(i)) for i in range(20_000)]))

    return {
        "python_loop": best_and_worst_us(loop, 500_000),
        "python_call": best_and_worst_us(calls, 200_000),
        "python_dict": best_and_worst_us(dictionary, 300_000),
        "python_pickle": best_and_worst_us(pickled, 20_000),
    }


def cuda_probes() -> dict[str, dict[str, float]]:
    """µs of host time per CUDA call through PyTorch, empty where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    tensor, other = torch.ones(16, device="cuda"), torch.ones(16, device="cuda")
    pinned = torch.ones(4, dtype=torch.uint8).pin_memory()
    target = torch.ones(4, dtype=torch.uint8, device="cuda")
    event, graph = torch.cuda.Event(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(300):
            tensor.add_(other)

    def times(action: Callable[[], Any], count: int) -> dict[str, float]:
        def repeated() -> None:
            for _ in range(count):
                action()

        result: dict[str, float] = {"best": float("inf"), "worst": 0.0}
        for _ in range(7):
            torch.cuda.synchronize()
            one = best_and_worst_us(repeated, count, repeats=1)
            result = {"best": min(result["best"], one["best"]), "worst": max(result["worst"], one["worst"])}
        torch.cuda.synchronize()
        return result

    def launch_and_wait() -> None:
        tensor.add_(other)
        torch.cuda.synchronize()

    def waited(blocking: bool, sleep_cycles: int) -> Callable[[], Any]:
        done = torch.cuda.Event(blocking=blocking)

        def action() -> None:
            torch.cuda._sleep(sleep_cycles)
            done.record()
            done.synchronize()

        return action

    spun, slept = (best_and_worst_us(waited(b, 10_000_000), repeats=15) for b in (False, True))
    blocked = {key: slept[key] - spun["best"] for key in slept}  # what a sleeping wait adds to a spinning one
    return {
        "wake_after_5ms": blocked,
        "torch_add": times(lambda: torch.add(tensor, other), LAUNCHES),
        "torch_add_inplace": times(lambda: tensor.add_(other), LAUNCHES),
        "event_record": times(event.record, LAUNCHES),
        "graph_replay_300": times(graph.replay, 20),
        "copy_h2d_pinned_4": times(lambda: target.copy_(pinned, non_blocking=True), LAUNCHES),
        "launch_and_wait": times(launch_and_wait, 100),
        "item": times(tensor[0].item, 100),
        "synchronize_idle": times(torch.cuda.synchronize, 100),
    }


def probe() -> dict[str, dict[str, float]]:
    """All probes of this machine at this moment."""
    return python_probes() | cuda_probes()


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    arguments = parser.parse_args(argv)
    numbers = probe()
    for name, values in numbers.items():
        print(f"{name:<20} {values['best']:9.4f} µs   worst {values['worst']:9.4f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(numbers, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
