"""Admission limits of the router."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from hpc_dynamo.config import Role, Router, Serve
from hpc_dynamo.router.scheduling.worker import RoutingTarget

# After a broken connection a worker gets no requests for this time, or until its agent reports it
# again. With the default of three attempts, a request outlasts the heartbeat timeout of an agent.
AVOID_S = 15.0


@dataclass(frozen=True)
class StartShare:
    """Limits each worker of a role to `requests` until `ready_workers` of that role are ready.

    Without it, the first ready worker would get all requests of a batch.
    """

    ready_workers: int
    requests: int


@dataclass(frozen=True)
class AdmissionLimits:
    """Limits of workers and queue. The default has none: requests wait only for a first worker."""

    max_requests_per_worker: float = math.inf
    max_prefill_tokens_per_worker: float = math.inf  # prompt tokens not yet computed
    max_queued_requests: float = math.inf
    queue_timeout_s: float = math.inf
    avoid_s: float = AVOID_S
    start_shares: Mapping[Role, StartShare] = field(default_factory=dict)

    def max_requests(self, role: Role, ready: int) -> float:
        """Return the limit of each worker of a role of which `ready` workers are ready."""
        share = self.start_shares.get(role)
        if share is None or ready >= share.ready_workers:
            return self.max_requests_per_worker
        return min(self.max_requests_per_worker, share.requests)

    def has_room(self, target: RoutingTarget, max_requests: float) -> bool:
        """Return True if a target may get one more request; `max_requests` is for its worker."""
        share = target.share
        return (
            target.active * share < max_requests
            and target.prefill_tokens * share <= self.max_prefill_tokens_per_worker
        )

    def queue_is_full(self, queued: int) -> bool:
        """Return True if no more requests may be queued (`serve.max_queued_requests`)."""
        return queued >= self.max_queued_requests

    @classmethod
    def for_endpoint(cls, serve: Serve, router: Router, max_num_seqs: int) -> Self:
        """Return the limits of an endpoint; workers decode up to `max_num_seqs` sequences."""
        tokens = router.max_prefill_tokens_per_worker
        return cls(
            max_prefill_tokens_per_worker=math.inf if tokens is None else tokens,
            max_requests_per_worker=serve.max_requests_per_worker or 2 * max_num_seqs,
            max_queued_requests=serve.max_queued_requests,
            queue_timeout_s=serve.queue_timeout_s,
        )
