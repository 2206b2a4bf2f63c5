"""A pipeline stage of SGLang in a process of its own: what it exchanges with its neighbours, charged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.runtime_context import get_parallel

from revati.virtual_time.host import IDLE_STEP, Phase

if TYPE_CHECKING:
    from revati.engines.sglang.processes import SglangProcess

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_RECEIVER = "sglang.srt.managers.scheduler_components.request_receiver.SchedulerRequestReceiver"
# What SGLang calls the two kinds of tensors.
_SENDS: dict[str, Phase] = {"proxy": "send", "output": "tokens_send"}


def hooks(process: SglangProcess) -> dict[str, Callable[..., Any]]:
    """Around which of SGLang's methods what runs; without pipeline stages, none of them does anything."""
    meter = process.meter

    def after(phase: Phase, concerned: Callable[[Any], bool]) -> Callable[..., Any]:
        """Charge taking over a message that has arrived, or handing one over that no one waits for."""

        def charged(original: Callable[..., Any], here: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(here, *args, **kwargs)
            if concerned(here):
                meter.charge(phase, IDLE_STEP)
            return result

        return charged

    def send(original: Callable[..., Any], *args: Any, msg_type: str, **kwargs: Any) -> Any:
        meter.charge("worker_ipc", IDLE_STEP)  # on its way: it arrives so much later than it is sent
        result = original(*args, msg_type=msg_type, **kwargs)
        meter.charge(_SENDS[msg_type], IDLE_STEP)
        return result

    def later_stage(here: Any) -> bool:
        return bool(get_parallel().pp_rank > 0)

    return {
        f"{_RECEIVER}.recv_requests": after("requests_receive", later_stage),
        f"{_SCHEDULER}._pp_send_pyobj_to_next_stage": after("requests_send", lambda _: True),
        f"{_SCHEDULER}._pp_recv_proxy_tensors": after("hidden_receive", later_stage),
        f"{_SCHEDULER}._pp_recv_dict_from_prev_stage": after("receive", lambda _: True),
        f"{_SCHEDULER}._pp_send_dict_to_next_stage": send,
    }
