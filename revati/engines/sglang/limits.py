"""Gives a warmed SGLang scheduler the knobs of a trial, so that it runs like one started with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.runtime_context import get_context

from revati.engines.base import InfeasibleError

if TYPE_CHECKING:
    from revati.engines.sglang.replica import SglangReplica


def apply_late_knobs(replica: SglangReplica, knobs: dict[str, Any]) -> None:
    """Set knobs that nothing but the scheduler was derived from.

    Raises:
        InfeasibleError: more running requests than the warmed engine has slots for.
    """
    scheduler = replica.scheduler
    if (running := knobs.get("max_running_requests")) is not None:
        if running > scheduler.max_running_requests:
            raise InfeasibleError(
                f"max_running_requests={running}: SGLang makes {scheduler.max_running_requests} slots"
            )
        scheduler.max_running_requests = running
        # What SGLang derives of it where nothing is said; it bounds the running batch.
        get_context().override("scheduler.pp_max_micro_batch_size_default", pp_max_micro_batch_size=running)
    if (prefill_tokens := knobs.get("max_prefill_tokens")) is not None:
        scheduler.max_prefill_tokens = prefill_tokens
    if (policy := knobs.get("schedule_policy")) is not None:
        scheduler.schedule_policy = policy
        scheduler.init_schedule_policy()
