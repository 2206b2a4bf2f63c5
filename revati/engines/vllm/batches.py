"""What is in each scheduled step: lengths for the timing, and the token ids that "sampling" yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from revati.engines.beginnings import RunningBeginnings
from revati.engines.tokens import ordinary_token_id
from revati.timing.sharing import Beginnings

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's requests: new tokens, total context and whether the step samples a token for each."""

    query_lens: list[int]
    context_lens: list[int]
    samples: dict[str, int | None]  # request id -> token id, None in the middle of a prompt
    num_prefills: int
    prompt_tokens: int
    beginnings: Beginnings | None = None  # of contexts, if any begin alike

    def write_samples(self, output: ModelRunnerOutput) -> None:
        """Put token ids into a step's outputs: no kernel ran, so those in "device" memory mean nothing."""
        tokens = (self.samples[req_id] for req_id in output.req_ids)
        output.sampled_token_ids = [[] if token is None else [token] for token in tokens]


class BatchReader:
    """Describes steps in the order in which they are scheduled; remembers the prompts in progress."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._prefill_lens: dict[str, int] = {}
        self._beginnings = RunningBeginnings()

    def read(self, scheduled: SchedulerOutput) -> Batch:
        computed: dict[str, int] = {}
        for new in scheduled.scheduled_new_reqs:
            computed[new.req_id] = new.num_computed_tokens
            prefill = new.prefill_token_ids or new.prompt_token_ids
            assert prefill is not None
            self._prefill_lens[new.req_id] = len(prefill)
            self._beginnings.add(new.req_id, prefill, new.num_computed_tokens)
        cached = scheduled.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        query_lens, context_lens = [], []
        samples: dict[str, int | None] = {}
        num_prefills = prompt_tokens = 0
        for req_id, new_tokens in scheduled.num_scheduled_tokens.items():
            context = computed[req_id] + new_tokens
            query_lens.append(new_tokens)
            context_lens.append(context)
            prefill_len = self._prefill_lens[req_id]
            if computed[req_id] < prefill_len:
                num_prefills += 1
                prompt_tokens += new_tokens
            token_id = ordinary_token_id(context, self._vocab_size)
            samples[req_id] = token_id if context >= prefill_len else None
        beginnings = self._beginnings.of(scheduled.num_scheduled_tokens)
        for req_id in scheduled.finished_req_ids:
            self._prefill_lens.pop(req_id, None)
            self._beginnings.forget(req_id)
        return Batch(query_lens, context_lens, samples, num_prefills, prompt_tokens, beginnings)
