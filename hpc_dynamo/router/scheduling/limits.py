"""Admission limits of the router."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from hpc_dynamo.config import Config, Role, Task
from hpc_dynamo.router.scheduling.worker import Member

# A worker whose connection broke is left alone until its agent reports it anew, or this long:
# with the usual three tries a request outlasts the time after which a silent agent is given up.
AVOID_S = 15.0


@dataclass(frozen=True)
class StartShare:
    """Requests that each worker of a role may hold until `workers` of that role are ready.

    Without it, the first ready worker would get all requests of a batch.
    """

    workers: int
    requests: int


@dataclass(frozen=True)
class Limits:
    """Admission limits. By default none: requests wait only for the first worker."""

    worker_requests: float = math.inf  # leases on one worker at a time
    worker_prefill_tokens: float = math.inf  # prompt tokens that wait on it
    queue: float = math.inf  # asks that wait
    queue_timeout_s: float = math.inf
    avoid_s: float = AVOID_S
    shares: Mapping[Role, StartShare] = field(default_factory=dict)

    def room(self, member: Member, ready: int) -> bool:
        """Return True if a worker may get one more request; `ready` workers have its role."""
        share = self.shares.get(member.role)
        return (
            not member.avoided
            and member.active < self.worker_requests
            and (share is None or ready >= share.workers or member.active < share.requests)
            and member.prefill_tokens <= self.worker_prefill_tokens
        )

    @classmethod
    def of(cls, config: Config) -> Self:
        """As a run's configuration wants them; a batch bounds itself."""
        if config.task is Task.batch:
            return cls()
        serve, engine = config.serve, config.engine
        tokens = config.router.max_prefill_tokens_per_worker
        return cls(
            worker_prefill_tokens=math.inf if tokens is None else tokens,
            worker_requests=serve.max_requests_per_worker or 2 * engine.max_num_seqs,
            queue=serve.max_queued_requests,
            queue_timeout_s=serve.queue_timeout_s,
        )
