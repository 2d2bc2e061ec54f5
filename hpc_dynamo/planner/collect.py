"""Collects the planner's signals from the router and from the engines' metrics."""

import time
from collections.abc import Sequence
from statistics import fmean

from hpc_dynamo.config import Role
from hpc_dynamo.messages import WorkerLoad
from hpc_dynamo.planner.prompt_lengths import PromptLengths
from hpc_dynamo.planner.signals import Signals
from hpc_dynamo.router import RequestRouter


def collect_signals(
    router: RequestRouter,
    loads: Sequence[WorkerLoad],
    changing_role: int,
    max_sequences: int,
    lengths: PromptLengths | None = None,
) -> Signals:
    """Return the signals of the interval that ends now, and start the next one.

    `changing_role` workers change their role; a worker decodes up to `max_sequences`. If no prompt
    was tokenized here, `lengths` provides the counts of the prefill engines.
    """
    totals, traffic = router.interval_stats.take(), router.traffic()
    prefill, decode = (
        [w for w in router.workers if w.role is role and not w.draining]
        for role in (Role.prefill, Role.decode)
    )
    prefill_ranks, decode_ranks = {w.rank for w in prefill}, {w.rank for w in decode}
    counted = (lengths or PromptLengths()).take(x for x in loads if x.rank in prefill_ranks)
    tokenized, requests = bool(totals.prompt_tokens.count), _mean([w.active for w in prefill])
    tokens = _mean([w.prefill_tokens for w in prefill])
    decode_loads = [load for load in loads if load.rank in decode_ranks]
    return Signals(
        at=time.time(),
        seconds=totals.seconds,
        requests=totals.requests,
        prompt_tokens=totals.prompt_tokens.value if tokenized else counted.tokens,
        answer_tokens=totals.answer_tokens.value,
        hit_rate=totals.hit_rate if tokenized else counted.hit_rate,
        ttft_s=totals.ttft_s.value,
        itl_s=totals.itl_s.value,
        queued_requests=traffic.queued,
        active_requests=traffic.active,
        prefill=len(prefill),
        decode=len(decode),
        changing_role=changing_role,
        prefill_requests=requests,
        prefill_tokens=tokens if tokenized else requests * counted.computed,
        running=_mean([load.running for load in decode_loads]),
        waiting=_mean([load.waiting for load in decode_loads]),
        slot_usage=_mean([(load.running + load.waiting) / max_sequences for load in decode_loads]),
        kv_usage=_mean([load.kv_usage for load in decode_loads]),
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
