"""The workers of a simulated job and their roles, changed as head.reshape and head.flip do."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_dynamo.config import Role
from hpc_dynamo.messages import WorkerLoad
from hpc_dynamo.planner.signals import Move
from hpc_dynamo.router import Member, Router
from hpc_dynamo.simulation.kv_event_source import Told
from hpc_dynamo.simulation.worker import Worker
from hpc_dynamo.timing_model import Timing


@dataclass(frozen=True)
class Flipping:
    """How a change of role goes."""

    turn_s: float = 0.5  # from the drain's end to ready in the new role
    drain_s: float = 300.0  # after which the worker has its old role again
    restart: bool = False  # the engine starts anew: its cache is lost
    least_prefill: int = 1  # workers that take requests
    least_decode: int = 1

    def least(self, role: Role) -> int:
        return max(1, self.least_prefill if role is Role.prefill else self.least_decode)


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
        self.flips = self.failed = 0
        self.moving = set[int]()  # ranks
        self.history = list[tuple[float, int, int]]()

    async def join(self, rank: int, role: Role) -> None:
        """A worker is ready, with what is in its cache."""
        self._workers[rank].timing = self._timings[role]
        await self._router.join(rank, role, f"worker {rank}")
        if rank in self._told:
            self._told[rank].again()
        self._write()

    def ready(self, role: Role) -> list[Member]:
        """Those that take requests in this role; who has least to do comes first."""
        here = [m for m in self._router.members if m.role is role and not m.aside]
        return sorted(here, key=lambda m: (m.active, m.rank))

    def loads(self) -> list[WorkerLoad]:
        """What the engines say."""
        return [
            WorkerLoad(
                rank=rank,
                running=worker.running,
                waiting=worker.waiting,
                kv_usage=worker.cache.usage,
            )
            for rank, worker in self._workers.items()
        ]

    def chosen(self, move: Move | None) -> list[int]:
        """Ranks that make a move; growing and giving up are no moves of a pool."""
        if move is None or move.old is None or move.new is None:
            return []
        ready = self.ready(move.old)
        spare = max(0, len(ready) - self._flipping.least(move.old))
        return [m.rank for m in ready[: min(move.count, spare)]]

    async def flip(self, rank: int, old: Role, new: Role) -> None:
        """No new request, the end of those under way, the new role; the old where that fails."""
        self.moving.add(rank)
        try:
            drained = asyncio.create_task(self._router.drain(rank))
            await asyncio.sleep(0)  # it has begun: the worker is aside
            self._write()
            await asyncio.wait_for(drained, self._flipping.drain_s)
            await self._turn(rank, new)
            self.flips += 1
        except TimeoutError:
            self._router.turn(rank, old)
            self.failed += 1
        finally:
            self.moving.discard(rank)
            self._write()

    async def _turn(self, rank: int, new: Role) -> None:
        flipping = self._flipping
        if flipping.restart:
            self._router.leave(rank)
            self._workers[rank].cache.clear()
            await asyncio.sleep(flipping.turn_s)
            await self.join(rank, new)
        else:
            await asyncio.sleep(flipping.turn_s)
            self._workers[rank].timing = self._timings[new]
            self._router.turn(rank, new)

    def _write(self) -> None:
        prefill, decode = (len(self.ready(role)) for role in (Role.prefill, Role.decode))
        self.history.append((self._loop.time(), prefill, decode))
