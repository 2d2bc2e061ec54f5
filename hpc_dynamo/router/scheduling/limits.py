"""Admission limits of the router."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from hpc_dynamo.config import Config, Role, Task
from hpc_dynamo.router.scheduling.worker import RoutedWorker

# A worker whose connection broke is left alone until its agent reports it anew, or this long:
# with the usual three tries a request outlasts the time after which a silent agent is given up.
AVOID_S = 15.0


@dataclass(frozen=True)
class StartShare:
    """Requests that each worker of a role may hold until `workers` of that role are ready.

    Without it, the first ready worker would get all requests of a batch.
    """

    ready_workers: int
    requests: int


@dataclass(frozen=True)
class AdmissionLimits:
    """Admission limits. By default none: requests wait only for the first worker."""

    max_requests_per_worker: float = math.inf  # leases on one worker at a time
    max_prefill_tokens_per_worker: float = math.inf  # prompt tokens that wait on it
    max_queued_requests: float = math.inf  # asks that wait
    queue_timeout_s: float = math.inf
    avoid_s: float = AVOID_S
    start_shares: Mapping[Role, StartShare] = field(default_factory=dict)

    def has_room(self, member: RoutedWorker, ready: int) -> bool:
        """Return True if a worker may get one more request; `ready` workers have its role."""
        share = self.start_shares.get(member.role)
        return (
            not member.avoid_count
            and member.active < self.max_requests_per_worker
            and (share is None or ready >= share.ready_workers or member.active < share.requests)
            and member.prefill_tokens <= self.max_prefill_tokens_per_worker
        )

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """As a run's configuration wants them; a batch bounds itself."""
        if config.task is Task.batch:
            return cls()
        serve, engine = config.serve, config.engine
        tokens = config.router.max_prefill_tokens_per_worker
        return cls(
            max_prefill_tokens_per_worker=math.inf if tokens is None else tokens,
            max_requests_per_worker=serve.max_requests_per_worker or 2 * engine.max_num_seqs,
            max_queued_requests=serve.max_queued_requests,
            queue_timeout_s=serve.queue_timeout_s,
        )
