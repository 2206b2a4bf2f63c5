"""Trials of one engine run next to each other, and cores do not wait for one engine's start."""

from revati.search.plan import EngineQueue


def keys_in_order(slots: int, engines: int, points: int) -> list[str]:
    """The engines of the trials in the order of their start, all trials taking equally long."""
    queue: EngineQueue[str] = EngineQueue()
    queue.add((f"e{engine}", f"e{engine}") for engine in range(engines) for _ in range(points))
    running: list[str] = []
    order = []
    while len(queue) or running:
        while len(running) < slots and (taken := queue.take()) is not None:
            running.append(taken)
            order.append(taken)
        queue.release(running.pop(0))
    return order


def test_one_slot_finishes_an_engine_before_the_next() -> None:
    assert keys_in_order(slots=1, engines=3, points=2) == ["e0", "e0", "e1", "e1", "e2", "e2"]


def test_two_slots_start_two_engines_side_by_side() -> None:
    order = keys_in_order(slots=2, engines=4, points=6)
    assert set(order[:12]) == {"e0", "e1"}
    assert order[:2] == ["e0", "e1"]
    assert set(order[12:14]) == {"e2", "e3"}


def test_a_last_engine_that_is_starting_is_shared_rather_than_left_waiting() -> None:
    queue: EngineQueue[int] = EngineQueue()
    queue.add([("only", 1), ("only", 2)])
    assert [queue.take(), queue.take(), queue.take()] == [1, 2, None]
