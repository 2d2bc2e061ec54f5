"""Role change of one worker: drain it, then switch it in place or restart its engine."""

import asyncio
import logging
import time

from hpc_dynamo.config import Config, Planner, Role
from hpc_dynamo.engines import engine
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.head.membership.reports import Reports
from hpc_dynamo.head.scaling.role_switch import EngineRoleSwitch
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import WorkerState
from hpc_dynamo.planner.records import RoleChange
from hpc_dynamo.router import RequestRouter

REPORT_MARGIN_S = 10.0  # time for an agent's report, in addition to stop and start

log = logging.getLogger(__name__)


def min_workers(planner: Planner, role: Role) -> int:
    """Return the number of workers that a role must keep."""
    least = planner.min_prefill_workers if role is Role.prefill else planner.min_decode_workers
    return max(1, least)


class RoleChanger:
    """Changes roles of workers. An engine that serves only one role changes it by a request, if it
    can, or else is restarted.

    If the change fails, the worker keeps its old role.
    """

    def __init__(
        self, config: Config, router: RequestRouter, members: Membership, client: HttpClient
    ) -> None:
        self._router, self._members = router, members
        self._planner = config.planner
        adapter = engine(config.engine.name)
        self._serves_both_roles = adapter.serves_both_roles(config)
        switch = adapter.role_switch(config)
        limit_s = config.engine.ready_timeout_s
        self._engine_switch = EngineRoleSwitch(client, switch, limit_s) if switch else None
        timeouts = config.engine
        self._restart_timeout_s = (
            timeouts.stop_timeout_s + timeouts.ready_timeout_s + REPORT_MARGIN_S
        )

    def min_workers(self, role: Role) -> int:
        return min_workers(self._planner, role)

    def ready_ranks(self, role: Role) -> list[int]:
        """Return the ranks that receive requests in this role, the least loaded first."""
        workers = [w for w in self._router.workers if w.role is role and not w.draining]
        return [w.rank for w in sorted(workers, key=lambda w: (w.active, w.rank))]

    async def change_role(self, rank: int, old: Role, new: Role) -> RoleChange:
        """Change the role of a worker; the result has the reason if that failed."""
        began = time.monotonic()
        error = await self._drain(rank, old)
        drained = time.monotonic()
        if not error:
            error = await self._change_drained(rank, new)
        return RoleChange(
            at=time.time(),
            rank=rank,
            old=old,
            new=new,
            reason=error,
            drain_s=drained - began,
            switch_s=time.monotonic() - drained,
        )

    async def _drain(self, rank: int, old: Role) -> str:
        """Drain a worker. If that fails, return the reason; the worker receives requests again."""
        timeout_s = self._planner.drain_timeout_s
        with self._members.subscribe() as reports:
            drain = asyncio.create_task(self._router.drain(rank))
            lost = asyncio.create_task(self._wait_for_loss(rank, old, reports))
            try:
                await asyncio.wait({drain, lost}, timeout=timeout_s, return_when="FIRST_COMPLETED")
                if lost.done():
                    error = lost.result()
                elif not drain.done():
                    error = f"requests still running after {timeout_s:g} s"
                else:
                    return "" if self._is_ready(rank) else f"worker {rank} died"
            finally:
                for task in (drain, lost):
                    task.cancel()
                await asyncio.gather(drain, lost, return_exceptions=True)
        self._router.set_role(rank, old)
        return error

    async def _wait_for_loss(self, rank: int, role: Role, reports: Reports) -> str:
        """Return once the worker is lost, or another one that its role cannot spare."""
        while True:
            if not self._is_ready(rank):
                return f"worker {rank} died"
            if len(self.ready_ranks(role)) < self.min_workers(role):
                return f"another {role} worker died: too few would be left"
            await reports.get()

    def _is_ready(self, rank: int) -> bool:
        # Workers of an extra job that has ended are unknown.
        worker = self._members.workers.get(rank)
        return worker is not None and worker.state is WorkerState.ready

    async def _change_drained(self, rank: int, new: Role) -> str:
        if self._serves_both_roles:
            return await self._switch_to(rank, new)
        if self._engine_switch:
            url, peers = self._members.workers[rank].url, self.ready_ranks(new)
            peer_url = self._members.workers[peers[0]].url if peers else ""
            refusal = await self._engine_switch.change(url, new, peer_url)
            if not refusal and self._is_ready(rank):
                self._router.worker_set.forget_blocks(rank)  # the engine has dropped its blocks
                return await self._switch_to(rank, new)
            what = "worker %d could not change to %s while it runs; restarting its engine: %s"
            log.warning(what, rank, new, refusal or "it died")
        return await self._restart_in(rank, new)

    async def _switch_to(self, rank: int, new: Role) -> str:
        await self._members.set_role(rank, new, restart=False)
        self._router.set_role(rank, new)
        return ""

    async def _restart_in(self, rank: int, new: Role) -> str:
        self._router.remove_worker(rank)
        with self._members.subscribe() as reports:
            await self._members.set_role(rank, new, restart=True)
            try:
                async with asyncio.timeout(self._restart_timeout_s):
                    return await self._wait_for_role(rank, new, reports)
            except TimeoutError:
                return f"no report of worker {rank} within {self._restart_timeout_s:.0f} s"

    async def _wait_for_role(self, rank: int, new: Role, reports: Reports) -> str:
        """Return once the worker is ready in its new role, or with the reason why it is not."""
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
                    return report.detail or "its agent has exited"
