"""What a planner sees: the router's own view of an interval, and what the workers say."""

import time
from collections.abc import Sequence
from statistics import fmean

from hpc_dynamo.config import Role
from hpc_dynamo.messages import WorkerLoad
from hpc_dynamo.planner.prompt_lengths import PromptLengths
from hpc_dynamo.planner.signals import Signals
from hpc_dynamo.router import Router


def collect_signals(
    router: Router,
    loads: Sequence[WorkerLoad],
    moving: int,
    max_sequences: int,
    lengths: PromptLengths | None = None,
) -> Signals:
    """Return the signals of the interval that ends now; start the next one.

    `moving` workers change their role; a worker decodes `most` sequences at a time. `lengths`
    reports the prefill engines' counts, used if no prompt was tokenized here.
    """
    seen, traffic = router.interval_stats.take(), router.traffic()
    prefill, decode = (
        [m for m in router.workers if m.role is role and not m.draining]
        for role in (Role.prefill, Role.decode)
    )
    ranks, computing = {m.rank for m in decode}, {m.rank for m in prefill}
    counted = (lengths or PromptLengths()).take(load for load in loads if load.rank in computing)
    tokenized, ahead = bool(seen.prompt_tokens.count), _mean([m.active for m in prefill])
    waiting_tokens = _mean([m.prefill_tokens for m in prefill])
    said = [load for load in loads if load.rank in ranks]
    return Signals(
        at=time.time(),
        seconds=seen.seconds,
        requests=seen.requests,
        prompt_tokens=seen.prompt_tokens.value if tokenized else counted.tokens,
        answer_tokens=seen.answer_tokens.value,
        hit_rate=seen.hit_rate if tokenized else counted.hit_rate,
        ttft_s=seen.ttft_s.value,
        itl_s=seen.itl_s.value,
        queued_requests=traffic.queued,
        active_requests=traffic.active,
        prefill=len(prefill),
        decode=len(decode),
        changing_role=moving,
        prefill_requests=ahead,
        prefill_tokens=waiting_tokens if tokenized else ahead * counted.computed,
        running=_mean([load.running for load in said]),
        waiting=_mean([load.waiting for load in said]),
        slot_usage=_mean([(load.running + load.waiting) / max_sequences for load in said]),
        kv_usage=_mean([load.kv_usage for load in said]),
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
