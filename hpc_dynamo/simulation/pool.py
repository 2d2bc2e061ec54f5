"""The workers of a simulated job and their roles."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_dynamo.config import Role
from hpc_dynamo.planner.signals import Move
from hpc_dynamo.router import Member, Router
from hpc_dynamo.simulation.told import Told
from hpc_dynamo.simulation.worker import Worker
from hpc_dynamo.simulator.timing import Timing


@dataclass(frozen=True)
class Flipping:
    """How a change of role goes: `seconds` after the worker's last request."""

    seconds: float = 0.5
    drain_s: float = 300.0


class Pool:
    """Joins workers to the router and changes their roles; a flip loses no request."""

    def __init__(
        self,
        router: Router,
        workers: Mapping[int, Worker],
        told: Mapping[int, Told],
        timings: Mapping[Role, Timing],
        flipping: Flipping,
    ) -> None:
        self._router, self._workers, self._told = router, workers, told
        self._timings, self._flipping = timings, flipping
        self._loop = asyncio.get_running_loop()
        self.flips, self.undone = 0, 0
        self.flipping = dict[int, Role]()  # on their way, by rank
        self.history = list[tuple[float, int, int]]()

    async def join(self, rank: int, role: Role) -> None:
        """A worker is ready, with what is in its cache."""
        self._workers[rank].timing = self._timings[role]
        await self._router.join(rank, role, f"worker {rank}")
        if rank in self._told:
            self._told[rank].again()
        self._write()

    def of(self, role: Role) -> list[Member]:
        """Ready ones that stay in their role."""
        here = self._router.members
        return [m for m in here if m.role is role and m.rank not in self.flipping]

    async def move(self, move: Move) -> None:
        """Change roles, the least busy first. Growing and giving up are no moves of a pool."""
        if move.old is None or move.new is None:
            return
        chosen = sorted(self.of(move.old), key=lambda m: (m.active, m.rank))[: move.count]
        for member in chosen:
            self.flipping[member.rank] = move.new
        self._write()
        async with asyncio.TaskGroup() as tasks:
            for member in chosen:
                tasks.create_task(self._flip(member, move.new))

    async def _flip(self, member: Member, role: Role) -> None:
        """No new request, the end of those under way, the new role."""
        old, end = member.role, self._loop.time() + self._flipping.drain_s
        member.avoided += 1
        while member.active and self._loop.time() < end:  # noqa: ASYNC110  releases tell nobody
            await asyncio.sleep(min(0.1, end - self._loop.time()))  # virtual: costs no time
        if member.active:
            self.undone += 1
            member.avoided -= 1
            role = old
        else:
            self._router.leave(member.rank)
            await asyncio.sleep(self._flipping.seconds)
            await self.join(member.rank, role)
            self.flips += 1
        del self.flipping[member.rank]
        self._write()

    def _write(self) -> None:
        now = self._loop.time()
        self.history.append((now, len(self.of(Role.prefill)), len(self.of(Role.decode))))
