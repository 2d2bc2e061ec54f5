"""One worker's change of role, from the drain to its first request in the new one."""

import asyncio
import time

from hpc_dynamo.config import Config, Planner, Role
from hpc_dynamo.engines import engine
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.messages import WorkerReport, WorkerState
from hpc_dynamo.planner.records import RoleChange
from hpc_dynamo.router import Router

SPARE_S = 10.0  # for an agent to tell, beyond what its engine may take to end and to start


def min_workers(planner: Planner, role: Role) -> int:
    """Workers that a role must keep."""
    return max(
        1, planner.min_prefill_workers if role is Role.prefill else planner.min_decode_workers
    )


class RoleChanger:
    """Changes roles. Where that fails the worker has its old role again, if it lives."""

    def __init__(self, config: Config, router: Router, members: Membership) -> None:
        self._router, self._members = router, members
        self._planner = config.planner
        self._restart = not engine(config.engine.name).serves_both_roles(config)
        times = config.engine
        self._patience_s = times.stop_timeout_s + times.ready_timeout_s + SPARE_S

    def min_workers(self, role: Role) -> int:
        return min_workers(self._planner, role)

    def ready_ranks(self, role: Role) -> list[int]:
        """Ranks that take requests in this role; who has least to do comes first."""
        here = [m for m in self._router.workers if m.role is role and not m.draining]
        return [m.rank for m in sorted(here, key=lambda m: (m.active, m.rank))]

    async def change_role(self, rank: int, old: Role, new: Role) -> RoleChange:
        began = time.monotonic()
        why = await self._drain(rank, old)
        drained = time.monotonic()
        if not why:
            why = await (self._anew(rank, new) if self._restart else self._turn(rank, new))
        return RoleChange(
            at=time.time(),
            rank=rank,
            old=old,
            new=new,
            reason=why,
            drain_s=drained - began,
            switch_s=time.monotonic() - drained,
        )

    async def _drain(self, rank: int, old: Role) -> str:
        """Why it failed; then the worker takes requests again."""
        with self._members.subscribe() as reports:
            drain = asyncio.create_task(self._router.drain(rank))
            few = asyncio.create_task(self._too_few(rank, old, reports))
            try:
                await asyncio.wait(
                    {drain, few},
                    timeout=self._planner.drain_timeout_s,
                    return_when="FIRST_COMPLETED",
                )
                if few.done():
                    why = few.result()
                elif not drain.done():
                    why = f"requests still under way after {self._planner.drain_timeout_s:g} s"
                else:
                    return "" if self._is_ready(rank) else f"worker {rank} died"
            finally:
                for task in (drain, few):
                    task.cancel()
                await asyncio.gather(drain, few, return_exceptions=True)
        self._router.set_role(rank, old)
        return why

    async def _too_few(self, rank: int, role: Role, reports: "asyncio.Queue[WorkerReport]") -> str:
        """Returns when the worker, or one that its role cannot do without, has died."""
        while True:
            if not self._is_ready(rank):
                return f"worker {rank} died"
            if len(self.ready_ranks(role)) < self.min_workers(role):
                return f"another {role} worker died: too few would be left"
            await reports.get()

    def _is_ready(self, rank: int) -> bool:
        worker = self._members.workers.get(rank)  # those of a further job that is over are gone
        return worker is not None and worker.state is WorkerState.ready

    async def _turn(self, rank: int, new: Role) -> str:
        await self._members.set_role(rank, new, restart=False)
        self._router.set_role(rank, new)
        return ""

    async def _anew(self, rank: int, new: Role) -> str:
        self._router.remove_worker(rank)
        with self._members.subscribe() as reports:
            await self._members.set_role(rank, new, restart=True)
            try:
                async with asyncio.timeout(self._patience_s):
                    return await self._in_new_role(rank, new, reports)
            except TimeoutError:
                return f"nothing heard of worker {rank} within {self._patience_s:.0f} s"

    async def _in_new_role(
        self, rank: int, new: Role, reports: "asyncio.Queue[WorkerReport]"
    ) -> str:
        while True:
            report = await reports.get()
            if report.rank != rank:
                continue
            match report.state:
                case WorkerState.ready if report.role is new:
                    return ""
                case WorkerState.failed if report.role is new:
                    return report.detail
                case WorkerState.lost | WorkerState.stopped:
                    return report.detail or "its agent has ended"
