"""Who is there, who is busy, who waits: one event loop, no locks."""

import asyncio
import math
from collections import deque
from collections.abc import Iterable
from itertools import count
from typing import Self

from hpc_dynamo import config as c
from hpc_dynamo.config import Kind, Role
from hpc_dynamo.messages import Traffic
from hpc_dynamo.router.held import Held, Waiting, target
from hpc_dynamo.router.index import ApproximateIndex
from hpc_dynamo.router.lease import Ask, Exhausted, Lease, Note, NoWorker, Overloaded, Target
from hpc_dynamo.router.limits import Limits
from hpc_dynamo.router.members import Member
from hpc_dynamo.router.pace import Pace
from hpc_dynamo.router.policy import POLICIES


class Router:
    """Grants leases on ready workers, the next in line first."""

    def __init__(self, kind: Kind, config: c.Router, limits: Limits | None = None) -> None:
        self._split = kind is Kind.disaggregated
        self._block, self._choose = config.block_tokens, POLICIES[config.policy]
        self._index = ApproximateIndex(config.cached_blocks)
        self._by_cache = config.policy is c.Policy.kv
        self._limits = limits or Limits()
        self._members, self._former = dict[int, Member](), dict[int, Member]()
        self._held, self._ids = dict[int, Held](), count(1)
        self._queue = deque[Waiting]()
        self._changed, self._nothing = asyncio.Condition(), asyncio.Event()
        self._pace = Pace()
        self.news = asyncio.Event()  # somebody came or went; whoever shows it clears it

    @classmethod
    def of(cls, config: c.Config) -> Self:
        """As a run's configuration wants it; a batch bounds itself."""
        return cls(config.topology.kind, config.router, Limits.of(config))

    @property
    def members(self) -> Iterable[Member]:
        return self._members.values()

    # Who is there.

    async def join(self, rank: int, role: Role, url: str) -> None:
        """A worker is ready. A rank that joins again has lost its former life's requests."""
        self.leave(rank)
        former = self._former.pop(rank, None)
        self._members[rank] = Member(rank, role, url, busy_s=former.busy_s if former else 0.0)
        self._index.join(rank)
        self.news.set()
        self._pump()
        async with self._changed:
            self._changed.notify_all()

    def leave(self, rank: int) -> None:
        """A worker is gone, and what was on it."""
        member = self._members.pop(rank, None)
        if member:
            self._index.leave(rank)
            self.news.set()
            self._former[rank] = member
            for held in list(self._held.values()):
                if member in (held.decode, held.prefill):
                    held.lease.lose(rank)
            self._pump()

    async def ready(self, roles: Iterable[Role]) -> None:
        """Until each role has a worker."""
        wanted = set(roles)
        async with self._changed:
            await self._changed.wait_for(lambda: self.complete(wanted))

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
        lease = self.route_now(ask)
        if lease:
            return lease
        waiting = self.enqueue(ask)
        try:
            return await waiting.granted
        except asyncio.CancelledError:
            self.forget(waiting)
            raise

    def route_now(self, ask: Ask) -> Lease | None:
        """The lease if nobody has to wait for it. Raises like `route`."""
        self._pace.requests += not ask.exclude
        lease = None if self._queue else self._place(ask)
        if lease is None and len(self._queue) >= self._limits.queue:
            self._pace.refused += 1
            what = f"{len(self._queue)} requests are waiting, which is all that may (serve.queue)"
            raise Overloaded(
                what, status=429, retry_after_s=self._pace.retry_after_s(len(self._queue))
            )
        return lease

    def enqueue(self, ask: Ask) -> Waiting:
        """A place in line, for one that `route_now` gave nothing: `granted` becomes the lease,
        or raises like `route`. Who does not want it any more must `forget` it."""
        waiting = Waiting(ask)
        limit_s = min(ask.timeout_s or math.inf, self._limits.queue_timeout_s)
        if limit_s < math.inf:
            later = asyncio.get_running_loop().call_later
            waiting.timer = later(limit_s, self._expire, waiting, limit_s)
        self._queue.append(waiting)
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
        if not waiting.granted.cancelled():
            waiting.granted.set_exception(self._too_late(waiting.ask, limit_s))
        self._pump()

    def _step_out(self, waiting: Waiting) -> None:
        self._queue.remove(waiting)
        if waiting.timer:
            waiting.timer.cancel()
        self._settle()

    def _settle(self) -> None:
        if not self._held and not self._queue:
            self._nothing.set()

    def _too_late(self, ask: Ask, limit_s: float) -> NoWorker | Overloaded:
        self._pace.refused += 1
        here = {m.role for m in self.members}
        missing = [role for role in self._needs(ask) if role not in here]
        if missing:
            what = f"no {' and no '.join(missing)} worker became ready within {limit_s:.0f} s"
            return NoWorker(what)
        what = f"no worker had room within {limit_s:.0f} s (serve.queue_timeout_s)"
        return Overloaded(
            what, status=503, retry_after_s=self._pace.retry_after_s(len(self._queue))
        )

    def _pump(self) -> None:
        """Grant to those in line: first come first served among those who need the same roles.
        One that has tried some workers holds up nobody."""
        stuck = set[tuple[Role, ...]]()
        for waiting in list(self._queue):
            needs = self._needs(waiting.ask)
            # Cancelled: its task has not run yet; nothing must be placed.
            if needs in stuck or waiting.granted.cancelled():
                continue
            try:
                lease = self._place(waiting.ask)
            except Exhausted as e:
                self._step_out(waiting)
                waiting.granted.set_exception(e)
                continue
            if lease:
                self._step_out(waiting)
                waiting.granted.set_result(lease)
            elif not waiting.ask.exclude:
                stuck.add(needs)
                if len(stuck) == 1 + self._split:  # all needs that there are
                    return

    def _needs(self, ask: Ask) -> tuple[Role, ...]:
        if not self._split:
            return (Role.aggregated,)
        return (Role.decode, Role.prefill) if ask.split else (Role.decode,)

    def _place(self, ask: Ask) -> Lease | None:
        """The best workers that have room now. Raises Exhausted."""
        hashes = memoryview(ask.hashes).cast("Q").tolist() if self._by_cache else []
        overlaps = self._index.overlaps(hashes) if hashes else {}
        chosen = list[Member]()
        for role in self._needs(ask):
            usable = self._usable(role, ask)
            if not usable:
                return None
            chosen.append(self._choose(usable, ask.tokens, overlaps, self._block))
        return self._hold(ask, chosen, overlaps, hashes)

    def _usable(self, role: Role, ask: Ask) -> list[Member]:
        of_role = [m for m in self.members if m.role is role]
        untried = [m for m in of_role if m.rank not in ask.exclude]
        if of_role and not untried:
            raise Exhausted(f"every {role} worker was tried")
        return [m for m in untried if not m.avoided and m.active < self._limits.worker_requests]

    def _hold(
        self, ask: Ask, chosen: list[Member], overlaps: dict[int, int], hashes: list[int]
    ) -> Lease:
        """Count the request on its workers."""
        decode, prefill = chosen[0], chosen[1] if len(chosen) > 1 else None
        computes = prefill or decode
        cached = overlaps.get(computes.rank, 0) * self._block
        blocks = -(-ask.tokens // self._block)
        lease = Lease(next(self._ids), target(prefill), Target(decode.rank, decode.url), self)
        held = Held(lease, decode, prefill, computes, max(ask.tokens - cached, 0), blocks)
        self._held[lease.id] = held
        computes.prefill_tokens += held.promised
        decode.blocks += blocks
        computes.begin()
        for member in chosen:
            member.active += 1
            member.turn = lease.id
            self._index.add(member.rank, hashes)
        return lease

    # What holders tell.

    def note(self, lease: int, note: Note, value: int) -> None:
        """See lease.Notes. Notes of a lease that is over mean nothing."""
        held = self._held.get(lease)
        if held is None:
            return
        match note:
            case Note.prefilled:
                self._prefilled(held)
            case Note.first_token:
                self._computed(held)
            case Note.progress:
                held.grow(value, self._block)
            case Note.broken:
                self._avoid(value)
            case Note.released:
                del self._held[lease]
                self._prefilled(held)
                self._computed(held)
                held.decode.blocks -= held.blocks
                held.decode.end()
                held.decode.active -= 1
                held.decode.served += 1
                self._pace.done += 1
                self._settle()
                self._pump()

    def _prefilled(self, held: Held) -> None:
        if held.prefill:
            self._computed(held)
            held.prefill.end()
            held.prefill.active -= 1
            held.prefill.served += 1
            held.prefill = None
            held.decode.begin()
            self._pump()

    def _computed(self, held: Held) -> None:
        held.computes.prefill_tokens -= held.promised
        held.promised = 0

    def _avoid(self, rank: int) -> None:
        member = self._members.get(rank)
        if member:
            member.avoided += 1
            asyncio.get_running_loop().call_later(self._limits.avoid_s, self._trust, member)

    def _trust(self, member: Member) -> None:
        """Counted, not timed: a loop's timers and the clock differ by a little."""
        member.avoided -= 1
        self._pump()

    def traffic(self) -> Traffic:
        """See Pace.traffic."""
        return self._pace.traffic(active=len(self._held), queued=len(self._queue))
