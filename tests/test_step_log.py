"""The step log on an engine core with the shape of vLLM's, without vLLM."""

import enum
import math
import mmap
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from revati.engines.vllm.step_log import COUNT_COLUMNS, GRAPH_COLUMN, TIME_COLUMNS, StepLog, register

WORK_S = 0.002
PAGES = 40


class Kind(enum.Enum):
    ADD = 0
    UTILITY = 1


class FakeEvent:
    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        time.sleep(3 * WORK_S)


def work() -> None:
    time.sleep(WORK_S)


def touch_pages(output: Any) -> None:
    work()
    with mmap.mmap(-1, PAGES * mmap.PAGESIZE) as fresh:
        for page in range(PAGES):
            fresh[page * mmap.PAGESIZE] = 1


class FakeCore:
    """Two steps of asynchronous scheduling: step 1 only launches, step 2 also updates step 1."""

    def __init__(self) -> None:
        self.outputs = [fake_output({"a": 5}, new=["a"]), fake_output({"a": 1}, cached={"a": 1})]
        self.scheduler = SimpleNamespace(
            schedule=self.schedule,
            update_from_output=lambda scheduled, output: work(),
            get_request_counts=lambda: (1, 0),
            kv_cache_manager=SimpleNamespace(block_pool=SimpleNamespace(get_num_free_blocks=lambda: 7)),
        )
        self.model_executor = SimpleNamespace(execute_model=touch_pages, sample_tokens=self.sample)
        self.step_fn = self.step
        self.queue: list[tuple[Any, Any]] = []

    def schedule(self) -> Any:
        work()
        return self.outputs.pop(0)

    def sample(self, grammar: Any) -> Any:
        work()
        future: Any = Future()
        future.set_result("tokens")
        future.async_output = SimpleNamespace(copy_event=FakeEvent())
        return future

    def step(self) -> tuple[None, bool]:
        output = self.scheduler.schedule()
        self.model_executor.execute_model(output)
        self.queue.append((self.model_executor.sample_tokens(None), output))
        if len(self.queue) == 2:
            future, earlier = self.queue.pop(0)
            self.scheduler.update_from_output(earlier, future.result())
        return None, True

    def _process_input_queue(self) -> None:
        if len(self.outputs) == 2:
            self._handle_client_request(Kind.UTILITY, None)
            request = SimpleNamespace(request_id="a", num_prompt_tokens=5, prompt_token_ids=[1] * 5)
            self._handle_client_request(Kind.ADD, (self.preprocess_add_request(request), 0))

    def _handle_client_request(self, kind: Kind, request: Any) -> None:
        work()

    def preprocess_add_request(self, request: Any) -> Any:
        return request

    def _process_engine_step(self) -> bool:
        return self.step_fn()[1]


def fake_output(scheduled: dict[str, int], new: list[str] = (), cached: dict[str, int] | None = None) -> Any:  # type: ignore[assignment]
    cached = cached or {}
    return SimpleNamespace(
        num_scheduled_tokens=scheduled,
        total_num_scheduled_tokens=sum(scheduled.values()),
        scheduled_new_reqs=[SimpleNamespace(req_id=name) for name in new],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(cached), num_output_tokens=list(cached.values())),
        finished_req_ids=set(),
    )


@pytest.fixture
def steps(tmp_path: Path) -> list[dict[str, Any]]:
    core: Any = FakeCore()
    StepLog().attach(core)
    for _ in range(2):
        core._process_input_queue()
        core._process_engine_step()
    assert core.write_step_log(str(tmp_path)) == 2
    assert core.write_step_log(str(tmp_path / "again")) == 0, "writing forgets the rows"
    table = pq.read_table(tmp_path / "steps.parquet")
    assert set(table.column_names) == {*TIME_COLUMNS, *COUNT_COLUMNS, GRAPH_COLUMN}
    requests = pq.read_table(tmp_path / "core_requests.parquet").to_pylist()
    assert [(r["event"], r["prompt_tokens"], r["step"]) for r in requests] == [
        ("decoded", 5, 1),
        ("added", 5, 1),
    ]
    return table.to_pylist()


def test_counts_tell_prefill_from_decode(steps: list[dict[str, Any]]) -> None:
    first, second = steps
    assert (first["prefill_requests"], first["prefill_tokens"], first["decode_requests"]) == (1, 5, 0)
    assert (second["prefill_requests"], second["decode_requests"], second["scheduled_tokens"]) == (0, 1, 1)
    assert first["added_requests"] == 1
    assert second["added_requests"] == 0
    assert second["update_step"] == first["step"]
    assert second["updated_requests"] == 1
    assert second["free_kv_blocks"] == 7


def test_page_faults_of_execute_are_counted(steps: list[dict[str, Any]]) -> None:
    assert all(PAGES <= step["execute_faults"] < 2 * PAGES for step in steps)


def test_phases_have_their_own_time(steps: list[dict[str, Any]]) -> None:
    _, second = steps
    order = [
        "input_begin_s",
        "input_end_s",
        "step_begin_s",
        "schedule_begin_s",
        "schedule_end_s",
        "execute_begin_s",
        "execute_end_s",
        "sample_end_s",
        "wait_begin_s",
        "wake_s",
        "update_begin_s",
        "update_end_s",
        "step_end_s",
        "output_end_s",
    ]
    times = [second[name] for name in order]
    assert times == sorted(times)
    for phase in ("schedule", "execute", "update"):
        assert second[f"{phase}_end_s"] - second[f"{phase}_begin_s"] >= WORK_S
    assert second["wake_s"] - second["wait_begin_s"] >= 3 * WORK_S
    assert second["gpu_was_done"] == 0


def test_a_step_without_update_has_no_update_times(steps: list[dict[str, Any]]) -> None:
    first, _ = steps
    assert math.isnan(first["update_begin_s"])
    assert math.isnan(first["wake_s"])
    assert first["update_step"] == -1
    assert first["gpu_was_done"] == -1
    assert first["input_first_s"] <= first["input_end_s"] - 2 * WORK_S


def test_register_costs_nothing_unless_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REVATI_STEP_LOG", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)  # importing it would fail
    register()
