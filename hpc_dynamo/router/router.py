"""Who is there, who is busy, who waits: one event loop, no locks."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Self
from uuid import uuid4

from hpc_dynamo import config as c
from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.messages import Traffic
from hpc_dynamo.router.active_lease import Held
from hpc_dynamo.router.decisions import Decisions
from hpc_dynamo.router.index.kv_state import Caches
from hpc_dynamo.router.interval_stats import Meter
from hpc_dynamo.router.scheduling.explain import Why, explain
from hpc_dynamo.router.scheduling.lease import Ask, Lease, Note
from hpc_dynamo.router.scheduling.limits import Limits
from hpc_dynamo.router.scheduling.peer_loads import Loads, Others
from hpc_dynamo.router.scheduling.queue import Line, Waiting
from hpc_dynamo.router.scheduling.selector import Choice, Chooser
from hpc_dynamo.router.scheduling.worker import Member
from hpc_dynamo.router.throughput import Pace

log = logging.getLogger(__name__)


class Router:
    """Grants leases on ready workers, the next in line first."""

    def __init__(
        self,
        kind: TopologyKind,
        config: c.Router,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        news: asyncio.Event | None = None,
    ) -> None:
        self._block, self._limits, self._clock = config.block_tokens, limits or Limits(), clock
        self.caches, self.decisions = Caches(config, clock), Decisions()
        self._chooser = Chooser(kind, config, self._limits, self.caches)
        self._all_needs = 2 if kind is TopologyKind.disaggregated else 1
        self._members, self._former = dict[int, Member](), dict[int, Member]()
        self._held, self._ids = dict[int, Held](), count(1)
        self._queue, self._others = Line(clock), Others()
        self._came, self._nothing = asyncio.Event(), asyncio.Event()
        self._pace, self.meter = Pace(clock), Meter(clock)
        self.name = uuid4().hex  # among heads
        self.news = news or asyncio.Event()  # who came or went; whoever shows it clears it

    @classmethod
    def of(cls, config: c.Config, news: asyncio.Event | None = None) -> Self:
        """As a run's configuration wants it; routers of several models share their `news`."""
        return cls(config.topology.kind, config.router, Limits.of(config), news=news)

    @property
    def members(self) -> Iterable[Member]:
        return self._members.values()

    # Who is there.

    async def join(self, rank: int, role: Role, url: str) -> None:
        """A worker is ready. A rank that joins again has lost its former life's requests."""
        self.leave(rank)
        former = self._former.pop(rank, None)
        member = Member(rank, role, url, busy_s=former.busy_s if former else 0.0, clock=self._clock)
        member.others = self._others.on(url)
        self._members[rank] = member
        self.caches.join(rank)
        self.news.set()
        self._pump()
        self._came.set()

    def leave(self, rank: int) -> None:
        """A worker is gone, and what was on it."""
        if member := self._members.pop(rank, None):
            self.caches.leave(rank)
            self.news.set()
            self._former[rank] = member
            member.rest.set()
            for held in list(self._held.values()):
                if member in (held.decode, held.prefill):
                    held.lease.lose(rank)
            self._pump()

    async def drain(self, rank: int) -> None:
        """Gives a worker nothing new; until no request needs it any more, or it is gone."""
        member = self._members[rank]
        member.aside = True
        member.rest.clear()
        while member.busy and self._members.get(rank) is member:
            await member.rest.wait()

    def turn(self, rank: int, role: Role) -> None:
        """A worker that was drained takes requests again, in this role. What it has cached stays
        known. Nothing happens where it is gone."""
        if member := self._members.get(rank):
            member.role, member.aside = role, False
            self.news.set()
            self._pump()

    def heed(self, head: str, loads: Loads) -> None:
        """What another head has on the same workers now, by URL; nothing where it is gone."""
        self._others.heed(head, loads)
        for member in self.members:
            member.others = self._others.on(member.url)

    def limit(self, limits: Limits) -> None:
        """Replace the admission limits. Queued requests are dispatched if there is room now."""
        self._limits = self._chooser.limits = limits
        self._pump()

    async def ready(self, roles: Iterable[Role]) -> None:
        """Until each role has a worker, or never will."""
        wanted = set(roles)
        while not (self.lost or self.complete(wanted)):
            self._came.clear()
            await self._came.wait()

    def give_up(self, why: str) -> None:
        """No request can end any more: refuses those in line, and all that are to come."""
        self._chooser.lost = why
        self._pump()
        self.news.set()
        self._came.set()

    @property
    def lost(self) -> str:
        """Why it was given up."""
        return self._chooser.lost

    async def idle(self) -> None:
        """Until no lease is out and nobody waits."""
        while self._held or self._queue:
            self._nothing.clear()
            await self._nothing.wait()

    def complete(self, roles: Iterable[Role]) -> bool:
        return set(roles) <= {m.role for m in self.members}

    # Who gets what.

    async def route(self, ask: Ask) -> Lease:
        """Workers for a request; waits in line where none has room.

        Raises Overloaded, NoWorker, or Exhausted where all were tried.
        """
        if lease := self.route_now(ask):
            return lease
        waiting = self.enqueue(ask)
        try:
            return await waiting.granted
        except asyncio.CancelledError:
            self.forget(waiting)
            raise

    def route_now(self, ask: Ask) -> Lease | None:
        """The lease if nobody has to wait for it. Raises like `route`."""
        if not ask.exclude:
            self._pace.requests += 1
            self.meter.came(ask.tokens)
        lease = None if self._queue else self._place(ask, self._clock())
        if lease is None and len(self._queue) >= self._limits.queue:
            self._make_room(ask)
        return lease

    def _make_room(self, ask: Ask) -> None:
        """In a full line: refuses the last, if it counts for less, else the newcomer."""
        full = self._pace.full(len(self._queue))
        last = self._queue.yields_to(ask)
        if last is None:
            raise full
        self._step_out(last)
        last.refuse(full)

    def explain(self, ask: Ask) -> Why:
        """What `route` would do now, and why; nothing is granted. Raises like `route`, but for
        one that would have to wait."""
        return explain(self._chooser, ask, tuple(self.members))

    def enqueue(self, ask: Ask) -> Waiting:
        """A place in line, for one that `route_now` gave nothing: `granted` becomes the lease,
        or raises like `route`. Who does not want it any more must `forget` it."""
        waiting = self._queue.join(ask)
        limit_s = min(ask.timeout_s or math.inf, self._limits.queue_timeout_s)
        if limit_s < math.inf:
            later = asyncio.get_running_loop().call_later
            waiting.timer = later(limit_s, self._expire, waiting, limit_s)
        self._pump()
        return waiting

    def forget(self, waiting: Waiting) -> None:
        """Nobody waits there any more; what was granted in the same turn goes back."""
        if waiting in self._queue:
            waiting.granted.cancel()
            self._step_out(waiting)
            self._pump()
        elif not waiting.granted.cancelled() and not waiting.granted.exception():
            waiting.granted.result().release()

    def _expire(self, waiting: Waiting, limit_s: float) -> None:
        self._step_out(waiting)
        here = {m.role for m in self.members}
        missing = [role for role in self._chooser.roles(waiting.ask) if role not in here]
        waiting.refuse(self._pace.late(len(self._queue), limit_s, missing))
        self._pump()

    def _step_out(self, waiting: Waiting) -> None:
        self._queue.leave(waiting)
        self._settle()

    def _settle(self) -> None:
        if not self._held and not self._queue:
            self._nothing.set()

    def _pump(self) -> None:
        """Grant to those in line, in its order among those who need the same roles. One that
        wants certain workers, or has tried some, holds up nobody."""
        stuck = set[tuple[Role, ...]]()
        for waiting in self._queue:
            ask, needs = waiting.ask, self._chooser.roles(waiting.ask)
            # Cancelled: its task has not run yet; nothing must be placed.
            if needs in stuck or waiting.granted.cancelled():
                continue
            try:
                lease = self._place(ask, waiting.since)
            except RequestFailed as e:
                self._step_out(waiting)
                waiting.refuse(e)
                continue
            if lease:
                self._step_out(waiting)
                waiting.granted.set_result(lease)
            elif not (ask.exclude or ask.wish.workers):
                stuck.add(needs)
                if len(stuck) == self._all_needs:
                    return

    def _place(self, ask: Ask, arrived: float) -> Lease | None:
        """The best workers that have room now. Raises like `route`."""
        began = time.perf_counter()
        choice = self._chooser.choose(ask, self.members)
        if choice is None:
            return None
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", self.explain(ask))
        lease = self._hold(ask, choice, arrived)
        self.meter.placed(ask.tokens, choice.overlap * self._block)
        self.decisions.count(choice, -(-ask.tokens // self._block), time.perf_counter() - began)
        return lease

    def _hold(self, ask: Ask, choice: Choice, arrived: float) -> Lease:
        lease = Lease(next(self._ids), choice.prefill_target, choice.decode_target, self)
        held = Held.begin(lease, choice, ask.tokens, self._block, self._chooser.handover, arrived)
        self._held[lease.id] = held
        for member in choice.workers:
            self.caches.expect(member.rank, choice.hashes)
        return lease

    # What holders tell.

    def note(self, lease: int, note: Note, value: int) -> None:
        """See lease.Notes. Notes of a lease that is over mean nothing."""
        held = self._held.get(lease)
        if held is None:
            return
        match note:
            case Note.prefilled:
                if held.prefilled():
                    self._pump()
            case Note.first_token:
                held.first_token(self.meter)
                self._pump()
            case Note.progress:
                held.grow(value, self._block)
            case Note.broken:
                self._avoid(value)
            case Note.released:
                del self._held[lease]
                held.end(self.meter)
                self._pace.done += 1
                self._settle()
                self._pump()

    def _avoid(self, rank: int) -> None:
        if member := self._members.get(rank):
            member.avoid(self._limits.avoid_s, self._pump)

    @property
    def handover_tokens(self) -> float:
        """See handover.Handover."""
        return self._chooser.handover.tokens

    def traffic(self) -> Traffic:
        """See Pace.traffic."""
        return self._pace.traffic(active=len(self._held), queued=len(self._queue))
