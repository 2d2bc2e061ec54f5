"""The workers of a simulated job and their role changes, as head/scaling executes them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc_dynamo.config import Role
from hpc_dynamo.messages import ONE_CACHE, PrefixCaches, WorkerLoad
from hpc_dynamo.planner.signals import RoleMove
from hpc_dynamo.router import RequestRouter, RoutedWorker
from hpc_dynamo.simulation.kv_event_source import KvEventSource
from hpc_dynamo.simulation.ranks import RankedWorker
from hpc_dynamo.timing_model import TimingModel


@dataclass(frozen=True)
class RoleChangeModel:
    """Timing and limits of role changes."""

    role_change_s: float = 0.5  # from the end of the drain to ready
    drain_s: float = 300.0  # limit of the drain; then the worker keeps its role
    restart_engine: bool = False  # the cache is lost
    min_prefill_workers: int = 1
    min_decode_workers: int = 1

    def min_workers(self, role: Role) -> int:
        return max(1, self.min_prefill_workers if role is Role.prefill else self.min_decode_workers)


class WorkerPool:
    """Adds workers to the router and changes their roles without losing requests."""

    def __init__(
        self,
        router: RequestRouter,
        workers: Mapping[int, RankedWorker],
        event_sources: Mapping[int, Sequence[KvEventSource]],
        timings: Mapping[Role, TimingModel],
        role_change: RoleChangeModel,
        caches: PrefixCaches = ONE_CACHE,
    ) -> None:
        self._caches = caches
        self._router, self._workers, self._event_sources = router, workers, event_sources
        self._timings, self._role_change = timings, role_change
        self._loop = asyncio.get_running_loop()
        self.role_changes = self.failed_role_changes = 0
        self.changing_role = set[int]()  # ranks
        self.history = list[tuple[float, int, int]]()

    async def add_worker(self, rank: int, role: Role) -> None:
        """Add a ready worker with the content of its cache."""
        self._workers[rank].set_timing(self._timings[role])
        await self._router.add_worker(rank, role, f"worker {rank}", caches=self._caches)
        for source in self._event_sources.get(rank, ()):
            source.republish()
        self._record_roles()

    def ready(self, role: Role) -> list[RoutedWorker]:
        """Return the workers of a role that are not draining, the least loaded first."""
        ready = [
            worker for worker in self._router.workers if worker.role is role and not worker.draining
        ]
        return sorted(ready, key=lambda worker: (worker.active, worker.rank))

    def loads(self) -> list[WorkerLoad]:
        """Return the engines' metrics."""
        return [
            WorkerLoad(
                rank=rank,
                running=worker.running,
                waiting=worker.waiting,
                kv_usage=worker.kv_usage,
            )
            for rank, worker in self._workers.items()
        ]

    def ranks_to_move(self, move: RoleMove | None) -> list[int]:
        """Return the ranks that change their role; moves to or from extra jobs are ignored."""
        if move is None or move.old is None or move.new is None:
            return []
        ready = self.ready(move.old)
        spare = max(0, len(ready) - self._role_change.min_workers(move.old))
        return [worker.rank for worker in ready[: min(move.count, spare)]]

    async def change_role(self, rank: int, old: Role, new: Role) -> None:
        """Drain a worker and set its new role, or the old one if the drain times out."""
        self.changing_role.add(rank)
        try:
            drained = asyncio.create_task(self._router.drain(rank))
            await asyncio.sleep(0)  # start the drain
            self._record_roles()
            await asyncio.wait_for(drained, self._role_change.drain_s)
            await self._set_role(rank, new)
            self.role_changes += 1
        except TimeoutError:
            self._router.set_role(rank, old)
            self.failed_role_changes += 1
        finally:
            self.changing_role.discard(rank)
            self._record_roles()

    async def _set_role(self, rank: int, new: Role) -> None:
        role_change = self._role_change
        if role_change.restart_engine:
            self._router.remove_worker(rank)
            self._workers[rank].clear_cache()
            await asyncio.sleep(role_change.role_change_s)
            await self.add_worker(rank, new)
        else:
            await asyncio.sleep(role_change.role_change_s)
            self._workers[rank].set_timing(self._timings[new])
            self._router.set_role(rank, new)

    def _record_roles(self) -> None:
        prefill, decode = (len(self.ready(role)) for role in (Role.prefill, Role.decode))
        self.history.append((self._loop.time(), prefill, decode))
