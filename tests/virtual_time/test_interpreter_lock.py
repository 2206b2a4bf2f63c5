"""What an engine core's other threads get done, and what that costs its main thread."""

from __future__ import annotations

from revati.virtual_time.interpreter_lock import InterpreterLock, ReceivingThread


def kept(*spans_ns: tuple[int, int]) -> InterpreterLock:
    lock = InterpreterLock()
    for taken_ns, released_ns in spans_ns:
        lock.take(taken_ns)
        lock.release(released_ns)
    return lock


def test_others_work_while_the_main_thread_waits() -> None:
    lock = kept((100, 200), (250, 300))
    assert lock.done_ns(10, 90) == 100
    assert lock.done_ns(10, 91) == 201
    assert lock.done_ns(150, 20) == 220  # it wanted to begin while the lock was kept
    assert lock.done_ns(90, 70) == 310  # 10 before, 50 between, 10 after
    assert lock.done_ns(400, 5) == 405


def test_what_needs_a_lock_that_is_kept_is_not_done_yet() -> None:
    lock = kept((100, 200))
    lock.take(300)
    lock.take(350)  # it has it already
    assert lock.done_ns(200, 100) == 300
    assert lock.done_ns(200, 101) is None
    assert lock.done_ns(320, 0) is None
    lock.release(400)
    assert lock.done_ns(200, 101) == 401
    assert lock.done_ns(320, 0) == 400


def test_messages_wait_for_those_before_them() -> None:
    thread: ReceivingThread[str] = ReceivingThread(kept((100, 200)))
    thread.send("first", 50, way_ns=40, unpack_ns=5)
    thread.send("second", 60, way_ns=40, unpack_ns=5)  # on its way 60 to 100
    thread.send("third", 61, way_ns=40, unpack_ns=5)  # 1 ns of it is left when the lock is free again
    assert [(thread.next_ns(), thread.take()) for _ in range(3)] == [
        (90, "first"),
        (100, "second"),
        (205, "third"),  # behind the second
    ]
    assert thread.next_ns() is None
    assert len(thread) == 0


def test_work_beside_launches_delays_the_main_thread_unless_it_would_have_waited() -> None:
    lock = InterpreterLock()
    lock.take(0)
    lock.share(100)  # launches until 200, then waits until 230
    lock.release(200)
    lock.take(230)
    lock.share(300)  # launches until 400, and goes on
    lock.take(400)
    lock.worked(done_ns=150, work_ns=80)  # 50 of it beside launches, of which waiting takes 30
    assert lock.settle() == 20
    lock.worked(done_ns=220, work_ns=20)  # in the wait
    assert lock.settle() == 0
    lock.worked(done_ns=350, work_ns=40)
    assert lock.settle() == 40
    assert lock.settle() == 0
