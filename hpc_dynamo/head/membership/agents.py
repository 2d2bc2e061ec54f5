"""Membership of agents, by their heartbeats, and of workers, by their agents' reports.

A ready worker is added to the router of its model; any other is removed at once. A model fails
when every worker of a role is permanently lost. The job ends when all its models have failed.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Set

from msgspec.structs import replace

from hpc_dynamo.agent import HEARTBEAT_S
from hpc_dynamo.config import Role
from hpc_dynamo.defects import contain_defects
from hpc_dynamo.errors import EngineError, HpcDynamoError
from hpc_dynamo.head.membership.kv_events import KvEventReceiver
from hpc_dynamo.head.membership.layout import JobLayout
from hpc_dynamo.head.membership.links import HEARTBEAT, AgentLinks
from hpc_dynamo.head.membership.losses import ModelFailure, lost_report, shows_bad_node
from hpc_dynamo.head.membership.reports import ReportSubscriptions
from hpc_dynamo.head.membership.shards import MultiNodeCoordinator
from hpc_dynamo.head.membership.versions import VersionCheck
from hpc_dynamo.messages import (
    AgentStopped,
    ControlMessage,
    Heartbeat,
    Hello,
    HelloRequest,
    KvEvents,
    Preempted,
    Roster,
    SetAsleep,
    SetRole,
    ShardExited,
    StartShard,
    StopAgent,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.router import RequestRouter
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Worker
from hpc_dynamo.wire import ControlServer

EXITED = (WorkerState.failed, WorkerState.lost, WorkerState.stopped)
UNEXPECTED = StopAgent(reason="the head does not expect this job, or no longer")

log = logging.getLogger(__name__)


class Membership:
    """Agents and workers of an attempt: the head's end of the control plane.

    `routers` are by model. `fail_job` is called once all models have failed.
    """

    def __init__(
        self,
        attempt: Attempt,
        roster: Roster,
        server: ControlServer[ControlMessage],
        routers: Mapping[str, RequestRouter],
        fail_job: Callable[[EngineError], None],
    ) -> None:
        self._attempt, self._roster, config = attempt, roster, attempt.config()
        self._layout = JobLayout(attempt, roster)
        self.expect, self.forget = self._layout.expect, self._layout.forget
        self._failure = ModelFailure(config, routers, fail_job)
        self._versions, self._updates = VersionCheck(config), asyncio.Lock()
        self._server, self._routers = server, routers
        self._links = AgentLinks(server, self._layout.nodes, config.cluster)
        self._stop_reason = ""  # given to all agents
        self._changed = asyncio.Condition()
        self._shards = MultiNodeCoordinator(self._links.send)
        self._kv_events = KvEventReceiver(self._links, self._layout, self._router)
        self.workers: dict[int, WorkerReport] = {}  # last report, by rank
        self._subscriptions = ReportSubscriptions()
        self.subscribe = self._subscriptions.subscribe
        self.on_preemption: Callable[[], object] = lambda: None  # for the job of the head
        self.preempted_nodes = asyncio.Queue[int]()  # nodes of extra jobs that Slurm ends soon

    @property
    def address(self) -> str:
        """Address of the head node on the job's network."""
        return self._roster.nodes[0].address

    def in_order(self) -> tuple[WorkerReport, ...]:
        return tuple(self.workers[rank] for rank in sorted(self.workers))

    async def listen(self) -> None:
        """Handle the messages of agents until cancelled."""
        while True:
            peer, message = await self._server.receive()
            with contain_defects(log, message, passed=HpcDynamoError):
                await self._handle(peer, message)

    async def _handle(self, peer: bytes, message: ControlMessage) -> None:
        match message:
            case Hello():
                await self._admit_agent(peer, message)
            case Heartbeat(node=node):
                await self._on_heartbeat(peer, node)
            case WorkerReport(rank=rank, node=node) if self._layout.runs(node, rank):
                await self._on_report(message)
            case StartShard(rank=rank) | ShardExited(rank=rank) if rank in self._layout.workers:
                await self._shards.on_message(self._layout.workers[rank], message)
            case Preempted(node=0):
                self.on_preemption()
            case Preempted(node=node):
                self.preempted_nodes.put_nowait(node)
            case AgentStopped(node=node) if node in self._layout.nodes:
                await self._remove_agent(node, WorkerState.stopped, "its agent has exited")
            case KvEvents():
                await self._kv_events.receive(peer, message)
                await asyncio.sleep(0)  # many events must not delay other tasks
            case _:
                name = type(message).__name__
                log.warning("ignored %s of an unknown worker, node or sender", name)

    async def _on_report(self, report: WorkerReport) -> None:
        """Handle the report of an agent. Its node counts as failed if no worker can run there."""
        bad = shows_bad_node(report, self.workers.values())
        if bad and self._layout.fail(report.node, for_good=True):
            await self._update_worker(replace(report, state=WorkerState.failed))
            await self._move_workers()
        else:
            await self._update_worker(report)

    async def _admit_agent(self, peer: bytes, hello: Hello) -> None:
        """Connect an agent. It may have run before, under an earlier head or cut off from this."""
        record, node = hello.node, hello.node.node
        stopping = self._stop_reason and not self._layout.expects(node)
        if stopping or not self._layout.knows(node):
            log.warning("agent %d on %s is not expected; stopping it", node, record.host)
            await self._server.send(peer, UNEXPECTED)
            return
        moved = self._layout.join(record)
        self._links.connect(node, peer)
        log.info("agent %d on %s joined, %d workers", node, record.host, len(hello.workers))
        if self._layout.of_head(node):
            await self._links.send(node, self._layout.replacements)
        if moved:
            await self._move_workers()
        for report in hello.workers:
            if self._layout.runs(node, report.rank) and self.workers.get(report.rank) != report:
                await self._update_worker(report)
        for start in hello.shards:
            if self._layout.runs(node, start.rank):
                await self._shards.on_message(self._layout.workers[start.rank], start)
        await self._shards.node_joined(node)

    async def _on_heartbeat(self, peer: bytes, node: int) -> None:
        answer = HEARTBEAT if self._links.heard(node, peer) else HelloRequest()
        await self._server.send(peer, answer if self._layout.knows(node) else UNEXPECTED)

    async def watch(self) -> None:
        """Remove agents that died or fell silent, with their workers. Runs until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for node, state, reason in await self._links.check():
                await self._remove_agent(node, state, reason)

    async def set_role(self, rank: int, role: Role, *, restart: bool) -> None:
        """Send a worker its new role. With `restart` it has the role only once it reports it."""
        worker = self.workers[rank]
        await self._links.send(worker.node, SetRole(rank=rank, role=role, restart=restart))
        if not restart and rank in self.workers:
            self.workers[rank] = replace(worker, role=role)

    async def set_asleep(self, rank: int, asleep: bool) -> None:
        """Inform a worker's agent, which expects no progress of a worker that sleeps."""
        if worker := self.workers.get(rank):
            self.workers[rank] = replace(worker, asleep=asleep)
            await self._links.send(worker.node, SetAsleep(rank=rank, asleep=asleep))

    async def stop_all(self, reason: str, timeout_s: float) -> None:
        """Stop all agents and wait until they have exited; Slurm ends those that do not."""
        self._stop_reason = reason
        await self.stop(frozenset(self._layout.nodes), reason, timeout_s)

    async def stop(self, nodes: Set[int], reason: str, timeout_s: float) -> None:
        """Stop the agents of some nodes and wait until they have exited, `timeout_s` at most."""
        for node in nodes & self._links.connected:
            await self._links.send(node, StopAgent(reason=reason))
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: not nodes & self._links.connected)
        except TimeoutError:
            late = sorted(nodes & self._links.connected)
            hosts = ", ".join(self._layout.nodes[node].host for node in late)
            log.error("agents on %s did not confirm their shutdown within %.0f s", hosts, timeout_s)

    async def _update_worker(self, worker: WorkerReport) -> None:
        """Apply a report, and what follows from it for workers of other versions."""
        async with self._updates:
            for report in self._versions.changes(
                worker, self.workers, self._layout.workers.values()
            ):
                if report.rank in self._layout.workers:
                    await self._apply(report)

    async def _apply(self, worker: WorkerReport) -> None:
        self.workers[worker.rank], router = worker, self._router(worker.rank)
        name = f"worker {worker.rank} ({worker.title}) on {worker.host}"
        log.info("%s: %s %s", name, worker.state, worker.detail)
        if worker.state is WorkerState.ready:
            place, asleep, caches = (worker.role, worker.url), worker.asleep, worker.caches
            await router.add_worker(worker.rank, *place, draining=asleep, caches=caches)
            for dp_rank in worker.caches.dp_ranks:  # earlier events were not received
                await self._kv_events.request_replay(worker.rank, 0, dp_rank)
        else:
            router.remove_worker(worker.rank)
        if worker.state in EXITED:
            await self._shards.stop_worker(worker.rank)
        self._subscriptions.publish(worker)
        placed = [w for w in self._layout.workers.values() if w.model == worker.model]
        same = [self.workers.get(w.rank) for w in placed if self._role(w) is worker.role]
        self._failure.check(worker, same, self.workers.values())

    async def _remove_agent(self, node: int, state: WorkerState, reason: str) -> None:
        """Remove an agent that has exited or is silent; its workers get this state, or move."""
        if state is not WorkerState.failed:  # a silent agent may connect again
            self._links.drop(node)
        moved = not self._stop_reason and self._layout.fail(node)
        async with self._changed:
            self._changed.notify_all()
        host, agent_log = self._layout.nodes[node].host, self._attempt.agent_log(node)
        log.info("node %d (%s) is gone: %s", node, host, reason)
        lost = f"node {node} ({host}) is gone: {reason}; log: {agent_log}"
        state = WorkerState.failed if moved else state
        for worker in self._layout.on(node):
            rank, role = worker.rank, self._role(worker)
            log_file, before = self._attempt.worker_log(rank), self.workers.get(rank)
            report = lost_report(before, worker, role, host, state, lost, log_file)
            await self._update_worker(report)
        if moved:
            await self._move_workers()
        else:
            await self._shards.node_lost(node, lost, for_good=state is not WorkerState.failed)
        if self._layout.of_extra_job(node) and state is not WorkerState.failed:
            for rank in self._layout.drop(node):  # nodes of extra jobs do not come back
                del self.workers[rank]

    async def _move_workers(self) -> None:
        """Place the workers of failed nodes on spare nodes, and inform all agents."""
        moved = self._layout.move()
        for node in self._links.connected:
            await self._links.send(node, self._layout.replacements)
        for worker in moved:
            if (role := self._role(worker)) is not worker.role:
                message = SetRole(rank=worker.rank, role=role, restart=True)
                await self._links.send(worker.node, message)

    def _role(self, worker: Worker) -> Role:
        """Return the last reported role, or the plan's before any report."""
        report = self.workers.get(worker.rank)
        return report.role if report else worker.role

    def _router(self, rank: int) -> RequestRouter:
        return self._routers[self._layout.workers[rank].model]
