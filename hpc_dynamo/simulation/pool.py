"""The workers of a simulated job and their roles, changed as head.reshape and head.flip do."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_dynamo.config import Role
from hpc_dynamo.messages import WorkerLoad
from hpc_dynamo.planner.signals import RoleMove
from hpc_dynamo.router import RoutedWorker, Router
from hpc_dynamo.simulation.kv_event_source import KvEventSource
from hpc_dynamo.simulation.worker import SimulatedWorker
from hpc_dynamo.timing_model import TimingModel


@dataclass(frozen=True)
class RoleChangeModel:
    """How a change of role goes."""

    role_change_s: float = 0.5  # from the drain's end to ready in the new role
    drain_s: float = 300.0  # after which the worker has its old role again
    restart_engine: bool = False  # the engine starts anew: its cache is lost
    min_prefill_workers: int = 1  # workers that take requests
    min_decode_workers: int = 1

    def min_workers(self, role: Role) -> int:
        return max(1, self.min_prefill_workers if role is Role.prefill else self.min_decode_workers)


class WorkerPool:
    """Joins workers to the router and changes their roles; a flip loses no request."""

    def __init__(
        self,
        router: Router,
        workers: Mapping[int, SimulatedWorker],
        told: Mapping[int, KvEventSource],
        timings: Mapping[Role, TimingModel],
        flipping: RoleChangeModel,
    ) -> None:
        self._router, self._workers, self._told = router, workers, told
        self._timings, self._flipping = timings, flipping
        self._loop = asyncio.get_running_loop()
        self.role_changes = self.failed_role_changes = 0
        self.changing_role = set[int]()  # ranks
        self.history = list[tuple[float, int, int]]()

    async def add_worker(self, rank: int, role: Role) -> None:
        """A worker is ready, with what is in its cache."""
        self._workers[rank].timing = self._timings[role]
        await self._router.add_worker(rank, role, f"worker {rank}")
        if rank in self._told:
            self._told[rank].republish()
        self._record_roles()

    def ready(self, role: Role) -> list[RoutedWorker]:
        """Those that take requests in this role; who has least to do comes first."""
        here = [m for m in self._router.workers if m.role is role and not m.draining]
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

    def ranks_to_move(self, move: RoleMove | None) -> list[int]:
        """Ranks that make a move; growing and giving up are no moves of a pool."""
        if move is None or move.old is None or move.new is None:
            return []
        ready = self.ready(move.old)
        spare = max(0, len(ready) - self._flipping.min_workers(move.old))
        return [m.rank for m in ready[: min(move.count, spare)]]

    async def change_role(self, rank: int, old: Role, new: Role) -> None:
        """No new request, the end of those under way, the new role; the old where that fails."""
        self.changing_role.add(rank)
        try:
            drained = asyncio.create_task(self._router.drain(rank))
            await asyncio.sleep(0)  # it has begun: the worker is aside
            self._record_roles()
            await asyncio.wait_for(drained, self._flipping.drain_s)
            await self._set_role(rank, new)
            self.role_changes += 1
        except TimeoutError:
            self._router.set_role(rank, old)
            self.failed_role_changes += 1
        finally:
            self.changing_role.discard(rank)
            self._record_roles()

    async def _set_role(self, rank: int, new: Role) -> None:
        flipping = self._flipping
        if flipping.restart_engine:
            self._router.remove_worker(rank)
            self._workers[rank].cache.clear()
            await asyncio.sleep(flipping.role_change_s)
            await self.add_worker(rank, new)
        else:
            await asyncio.sleep(flipping.role_change_s)
            self._workers[rank].timing = self._timings[new]
            self._router.set_role(rank, new)

    def _record_roles(self) -> None:
        prefill, decode = (len(self.ready(role)) for role in (Role.prefill, Role.decode))
        self.history.append((self._loop.time(), prefill, decode))
