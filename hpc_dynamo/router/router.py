"""The request router: ready workers, active leases and queued requests. Runs in one event loop."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Self
from uuid import uuid4

from hpc_dynamo.config import Config, Role, Router, Task, TopologyKind
from hpc_dynamo.messages import ONE_CACHE, PrefixCaches, Traffic
from hpc_dynamo.router.active_lease import ActiveLease
from hpc_dynamo.router.decisions import DecisionStats
from hpc_dynamo.router.index.kv_state import KvState
from hpc_dynamo.router.interval_stats import IntervalStats
from hpc_dynamo.router.scheduling.explain import RoutingExplanation, explain
from hpc_dynamo.router.scheduling.lease import Lease, LeaseEvent, RoutingRequest
from hpc_dynamo.router.scheduling.limits import AdmissionLimits
from hpc_dynamo.router.scheduling.peer_loads import LoadByAddress
from hpc_dynamo.router.scheduling.queue import QueuedRequest, RequestQueue
from hpc_dynamo.router.scheduling.selector import Selection, WorkerSelector
from hpc_dynamo.router.scheduling.worker import RoutedWorker
from hpc_dynamo.router.throughput import Throughput
from hpc_dynamo.router.worker_set import WorkerSet

log = logging.getLogger(__name__)


class RequestRouter:
    """Grants leases on ready workers. Requests without a free worker wait in a queue.

    `changed` is set when workers or roles change and when the router fails; its reader clears it.
    """

    def __init__(
        self,
        kind: TopologyKind,
        config: Router,
        limits: AdmissionLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        changed: asyncio.Event | None = None,
    ) -> None:
        self._block_tokens, self._clock = config.block_tokens, clock
        self._limits = limits or AdmissionLimits()
        self.kv_state, self.decisions = KvState(config, clock), DecisionStats()
        self._selector = WorkerSelector(kind, config, self._limits, self.kv_state)
        self.worker_set = WorkerSet(self.kv_state, clock)
        self._workers = self.worker_set.by_rank
        self._leases, self._lease_ids = dict[int, ActiveLease](), count(1)
        self._queue = RequestQueue(clock)
        self._worker_added, self._idle = asyncio.Event(), asyncio.Event()
        self._throughput, self.interval_stats = Throughput(clock), IntervalStats(clock)
        self.head_name = uuid4().hex  # distinguishes this head among peer heads
        self.changed = changed or asyncio.Event()

    @classmethod
    def from_config(cls, config: Config, changed: asyncio.Event | None = None) -> Self:
        """Return the router of a run. A batch limits its requests itself."""
        batch, seqs = config.task is Task.batch, config.engine.max_num_seqs
        limits = None if batch else AdmissionLimits.for_endpoint(config.serve, config.router, seqs)
        return cls(config.topology.kind, config.router, limits, changed=changed)

    @property
    def workers(self) -> Iterable[RoutedWorker]:
        return self._workers.values()

    async def add_worker(
        self, rank: int, role: Role, url: str, *, draining: bool = False,
        caches: PrefixCaches = ONE_CACHE,
    ) -> None:  # fmt: skip
        """Add a ready worker. A rank that is added again loses its earlier requests.

        With `draining` it gets no requests before `set_role`, like after `drain`. `caches` are its
        data-parallel ranks.
        """
        self.remove_worker(rank)
        self.worker_set.add(rank, role, url, caches).draining = draining
        self.changed.set()
        self._serve_queue()
        self._worker_added.set()

    def remove_worker(self, rank: int) -> None:
        """Remove a worker and mark its leases as lost."""
        if worker := self.worker_set.remove(rank):
            self.changed.set()
            worker.idle.set()
            for active in list(self._leases.values()):
                if active.uses(worker):
                    active.lease.set_worker_lost(rank)
            self._serve_queue()

    async def drain(self, rank: int) -> None:
        """Stop new requests to a worker, and wait until no lease needs it or it is removed."""
        worker = self._workers[rank]
        worker.draining = True
        worker.idle.clear()
        while worker.busy and self._workers.get(rank) is worker:
            await worker.idle.wait()

    def set_role(self, rank: int, role: Role) -> None:
        """Return a drained worker to service in this role. Its known KV blocks stay valid."""
        if worker := self._workers.get(rank):
            worker.role, worker.draining = role, False
            self.changed.set()
            self._serve_queue()

    def set_peer_load(self, head: str, loads: LoadByAddress) -> None:
        """Replace the load that another head has placed on these workers; {} if it is gone."""
        self.worker_set.set_peer_load(head, loads)

    def set_limits(self, limits: AdmissionLimits) -> None:
        """Replace the admission limits. Queued requests are dispatched if there is room now."""
        self._limits = self._selector.limits = limits
        self._serve_queue()

    async def wait_for_roles(self, roles: Iterable[Role]) -> None:
        """Wait until each role has a worker, or the router has failed."""
        required = set(roles)
        while not (self.failure or self.has_roles(required)):
            self._worker_added.clear()
            await self._worker_added.wait()

    def has_roles(self, roles: Iterable[Role]) -> bool:
        return set(roles) <= {w.role for w in self.workers}

    def fail(self, reason: str) -> None:
        """Reject all queued and all later requests with this reason."""
        self._selector.failure = reason
        self._serve_queue()
        self.changed.set()
        self._worker_added.set()

    @property
    def failure(self) -> str:
        """Return the reason given to `fail`; empty while requests are served."""
        return self._selector.failure

    async def wait_idle(self) -> None:
        """Wait until there is neither a lease nor a queued request."""
        while self._leases or self._queue:
            self._idle.clear()
            await self._idle.wait()

    async def route(self, request: RoutingRequest) -> Lease:
        """Return a lease on workers for the request; wait in the queue if all are busy.

        Raises Overloaded, NoWorker, NoSuchWorker, or AllWorkersTried.
        """
        if lease := self.try_route(request):
            return lease
        queued = self.enqueue(request)
        try:
            return await queued.lease
        except asyncio.CancelledError:
            self.cancel(queued)
            raise

    def try_route(self, request: RoutingRequest) -> Lease | None:
        """Return a lease if a worker is free now. Raises like `route`."""
        if not request.exclude:
            self._throughput.requests += 1
            self.interval_stats.add_request(request.prompt_tokens)
        full = self._limits.queue_is_full(len(self._queue))
        roles = self._selector.required_roles(request)
        crowded = not self._queue.has_room_for(request, roles)
        # A queue full of requests for busy workers does not close the others.
        waits = self._queue.blocks(request, roles) if full or crowded else self._queue
        lease = None if waits else self._try_grant(request, self._clock())
        if lease is None and crowded:
            raise self._throughput.too_many_worker_sets(len(self._queue))
        if lease is None and full:
            self._reject_one(request)
        return lease

    def _reject_one(self, request: RoutingRequest) -> None:
        """Reject the last queued request if its priority is lower; else the new request."""
        error = self._throughput.queue_full(len(self._queue))
        if (last := self._queue.last_with_lower_priority(request)) is None:
            raise error
        self._dequeue(last)
        last.reject(error)

    def explain(self, request: RoutingRequest) -> RoutingExplanation:
        """Return what `route` would do now and why. Raises like `route`, except for queueing."""
        return explain(self._selector, request, tuple(self.workers))

    def enqueue(self, request: RoutingRequest) -> QueuedRequest:
        """Queue a request for which `try_route` returned None; to give up, call `cancel`."""
        queued = self._queue.push(request, self._selector.required_roles(request))
        limit_s = min(request.timeout_s or math.inf, self._limits.queue_timeout_s)
        if limit_s < math.inf:
            later = asyncio.get_running_loop().call_later
            queued.timer = later(limit_s, self._expire, queued, limit_s)
        self._serve_queue()
        return queued

    def cancel(self, queued: QueuedRequest) -> None:
        """Drop a queued request; release its lease if one was granted in the meantime."""
        if queued in self._queue:
            queued.lease.cancel()
            self._dequeue(queued)
            self._serve_queue()
        elif not queued.lease.cancelled() and not queued.lease.exception():
            queued.lease.result().release()

    def _expire(self, queued: QueuedRequest, limit_s: float) -> None:
        self._dequeue(queued)
        required = self._selector.required_roles(queued.request)
        missing = [role for role in required if not self.has_roles([role])]
        queued.reject(self._throughput.queue_timeout(len(self._queue), limit_s, missing))
        self._serve_queue()

    def _dequeue(self, queued: QueuedRequest) -> None:
        self._queue.remove(queued)
        self._update_idle()

    def _update_idle(self) -> None:
        if not self._leases and not self._queue:
            self._idle.set()

    def _serve_queue(self) -> None:
        """Grant leases to queued requests, in order among those that require the same roles.

        A request for certain workers, or one that tried some, does not block those behind it.
        """
        self._queue.offer(self._serve)

    def _serve(self, queued: QueuedRequest) -> bool:
        """Return False if a queued request has to wait."""
        if queued.lease.cancelled():  # it is still queued: its task has not run yet
            return True
        try:
            lease = self._try_grant(queued.request, queued.enqueued_at)
        except Exception as e:  # noqa: BLE001  # the caller of `route` gets it
            self._dequeue(queued)
            queued.reject(e)
            return True
        if lease:
            self._dequeue(queued)
            queued.lease.set_result(lease)
        return lease is not None

    def _try_grant(self, request: RoutingRequest, arrived_at: float) -> Lease | None:
        """Return a lease on the best workers with room now. Raises like `route`."""
        began = time.perf_counter()
        selection = self._selector.select(request, self.workers)
        if selection is None:
            return None
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", self.explain(request))
        tokens, block_tokens = request.prompt_tokens, self._block_tokens
        blocks = -(-tokens // block_tokens)
        lease = self._grant(selection, blocks, arrived_at)
        self.interval_stats.add_placement(tokens, selection.overlap_blocks * block_tokens)
        self.decisions.record(selection, blocks, time.perf_counter() - began)
        return lease

    def _grant(self, selection: Selection, blocks: int, arrived_at: float) -> Lease:
        id_, cost = next(self._lease_ids), self._selector.transfer_cost
        lease = Lease(id_, selection.leased_prefill, selection.leased_decode, self)
        self._leases[id_] = ActiveLease.start(lease, selection, blocks, cost, arrived_at)
        for target in selection.targets:
            self.kv_state.expect(target.key, selection.hashes, selection.confirmable_blocks)
        return lease

    def on_lease_event(self, lease: int, event: LeaseEvent, value: int) -> None:
        """Handle an event of a lease, see LeaseListener. It is ignored after the release."""
        active = self._leases.get(lease)
        if active is None:
            return
        match event:
            case LeaseEvent.prefilled:
                if active.on_prefilled():
                    self._serve_queue()
            case LeaseEvent.first_token:
                active.on_first_token(self.interval_stats)
                self._serve_queue()
            case LeaseEvent.progress:
                active.on_progress(value, self._block_tokens)
            case LeaseEvent.connection_lost:
                if worker := self._workers.get(value):
                    worker.avoid(self._limits.avoid_s, self._serve_queue)
            case LeaseEvent.released:
                del self._leases[lease]
                active.release(self.interval_stats)
                self._throughput.finished += 1
                self._update_idle()
                self._serve_queue()

    @property
    def transfer_cost_tokens(self) -> float:
        return self._selector.transfer_cost.tokens

    def traffic(self) -> Traffic:
        """Return request counts and the recent rate, see Throughput.traffic."""
        return self._throughput.traffic(active=len(self._leases), queued=len(self._queue))
