"""Who is here: agents by heartbeat, workers by what their agents report.

A ready worker joins its model's router, any other leaves it at once. When every worker of a role
is lost for good, no request of that model can end any more; when that is so of all models, the job
is over.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager

from msgspec.structs import replace

from hpc_dynamo.agent import HEARTBEAT_S
from hpc_dynamo.config import Role
from hpc_dynamo.engines.contract import roles_can_change
from hpc_dynamo.errors import EngineError
from hpc_dynamo.head.membership.shards import MultiNodeCoordinator
from hpc_dynamo.messages import (
    AgentStopped,
    ControlMessage,
    Heartbeat,
    Hello,
    KvEvents,
    KvReplayRequest,
    NodeRecord,
    Preempted,
    Roster,
    SetRole,
    ShardExited,
    StartShard,
    StopAgent,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.router import Router
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan, Worker
from hpc_dynamo.wire import ControlServer

_Follower = asyncio.Queue[WorkerReport]

OVER = (WorkerState.failed, WorkerState.lost, WorkerState.stopped)  # of a worker's life

SENT_AWAY = StopAgent(reason="the head does not expect this job, or not any more")

GONE = (WorkerState.lost, WorkerState.stopped)

log = logging.getLogger(__name__)


class Membership:
    """The head's end of the control plane."""

    def __init__(
        self,
        attempt: Attempt,
        roster: Roster,
        server: ControlServer[ControlMessage],
        routers: Mapping[str, Router],
        hopeless: Callable[[EngineError], None],
    ) -> None:
        self._attempt, self._roster, config = attempt, roster, attempt.config()
        plan = attempt.plan()
        self._placed = {worker.rank: worker for worker in plan.head_plan.workers}
        self._planned = plan.nodes  # those after them come and go
        self._nodes = {node.node: node for node in roster.nodes}
        self._expected = dict[int, tuple[Worker, ...]]()  # by node: of further jobs, not here yet
        self._silence_s, self._reshaped = (
            config.cluster.heartbeat_timeout_s,
            roles_can_change(config),
        )
        self._server, self._routers, self._hopeless = server, routers, hopeless
        self._peers: dict[int, bytes] = {}  # node: socket id
        self._heard: dict[int, float] = {node.node: time.monotonic() for node in roster.nodes}
        self._changed, self._parts = asyncio.Condition(), MultiNodeCoordinator(self._send)
        self.workers: dict[int, WorkerReport] = {}  # by rank
        self._followers = set[_Follower]()
        self.preempted_nodes = asyncio.Queue[int]()  # nodes of further jobs that Slurm ends soon

    @property
    def address(self) -> str:
        """The head node's, on the job's network."""
        return self._roster.nodes[0].address

    def in_order(self) -> tuple[WorkerReport, ...]:
        return tuple(self.workers[rank] for rank in sorted(self.workers))

    async def listen(self) -> None:
        """Take in what agents send. Runs until cancelled."""
        while True:
            peer, message = await self._server.receive()
            match message:
                case Hello(node=record):
                    await self._welcome(peer, record)
                case Heartbeat(node=node):
                    await self._beat(peer, node)
                case WorkerReport(rank=rank) if rank in self._placed:
                    await self._admit(message)
                case StartShard(rank=rank) | ShardExited(rank=rank) if rank in self._placed:
                    await self._parts.on_message(self._placed[rank], message)
                case Preempted(node=node):
                    self.preempted_nodes.put_nowait(node)
                case AgentStopped(node=node) if node in self._nodes:
                    await self._gone(node, WorkerState.stopped, "its agent has ended")
                case KvEvents() as events:
                    await self._learn(events)
                    await asyncio.sleep(0)  # a flood of them must not keep all others waiting
                case _:
                    what = type(message).__name__
                    log.warning("an agent sent %s: only the head does, or it is not ours", what)

    def expect(self, plan: Plan) -> None:
        """Agents of a further job may come, and bring its workers."""
        for node in plan.used_nodes:
            self._expected[node] = plan.on_node(node)

    def forget(self, plan: Plan) -> None:
        """A further job is over; whoever comes of it is sent away."""
        for node in plan.used_nodes:
            self._expected.pop(node, None)

    async def _welcome(self, peer: bytes, record: NodeRecord) -> None:
        node = record.node
        if node in self._expected:
            self._placed |= {worker.rank: worker for worker in self._expected.pop(node)}
            self._nodes[node] = record
        elif node not in self._nodes:
            log.warning("agent %d on %s is not expected: sent away", node, record.host)
            await self._server.send(peer, SENT_AWAY)
            return
        self._peers[node] = peer
        self._heard[node] = time.monotonic()
        log.info("agent %d on %s is here", node, record.host)
        await self._parts.node_joined(node)

    async def _beat(self, peer: bytes, node: int) -> None:
        if node in self._nodes:
            self._heard[node] = time.monotonic()
            await self._server.send(peer, Heartbeat(node=0))
        else:
            await self._server.send(peer, SENT_AWAY)

    async def _send(self, node: int, message: ControlMessage) -> None:
        """To the agent of a node, if it is here."""
        if node in self._peers:
            await self._server.send(self._peers[node], message)

    async def _learn(self, events: KvEvents) -> None:
        """Of a further job that is over something may still come."""
        rank = events.rank
        if rank in self._placed:
            caches = self._router(rank).kv_state
            missed = caches.receive_events(rank, events.seq, events.payload)
            if missed is not None:
                await self._ask_replay(rank, missed)

    async def _ask_replay(self, rank: int, start: int) -> None:
        """Its agent sends again what the worker's engine has of KV events from `start` on, and
        then the number -1."""
        if rank in self._placed:
            await self._send(self._placed[rank].node, KvReplayRequest(rank=rank, start=start))

    async def watch(self) -> None:
        """Nodes whose agent fell silent are gone, with all their workers. Until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            silent = [n for n, at in self._heard.items() if time.monotonic() - at > self._silence_s]
            for node in silent:
                await self._gone(node, WorkerState.lost, f"silent for {self._silence_s:.0f} s")

    async def set_role(self, rank: int, role: Role, *, restart: bool) -> None:
        """Tell a worker's agent of its new role; without a restart it has it from now on."""
        worker = self.workers[rank]
        await self._send(worker.node, SetRole(rank=rank, role=role, restart=restart))
        if not restart and rank in self.workers:
            self.workers[rank] = replace(worker, role=role)

    @contextmanager
    def subscribe(self) -> Iterator["asyncio.Queue[WorkerReport]"]:
        """All reports that come meanwhile, in their order."""
        reports: asyncio.Queue[WorkerReport] = asyncio.Queue()
        self._followers.add(reports)
        try:
            yield reports
        finally:
            self._followers.discard(reports)

    async def stop_all(self, reason: str, patience_s: float) -> None:
        """Tell every agent to end and wait for the farewells; the silent are left to Slurm."""
        await self.stop(frozenset(self._nodes), reason, patience_s)

    async def stop(self, nodes: Set[int], reason: str, patience_s: float) -> None:
        """As above, for the agents of these nodes."""
        for node in nodes & self._peers.keys():
            await self._server.send(self._peers[node], StopAgent(reason=reason))
        try:
            async with asyncio.timeout(patience_s), self._changed:
                await self._changed.wait_for(lambda: not nodes & self._peers.keys())
        except TimeoutError:
            late = sorted(nodes & self._peers.keys())
            hosts = ", ".join(self._nodes[node].host for node in late)
            log.error("no farewell within %.0f s from %s", patience_s, hosts)

    async def _admit(self, worker: WorkerReport) -> None:
        self.workers[worker.rank], router = worker, self._router(worker.rank)
        what = f"worker {worker.rank} ({worker.title}) on {worker.host}: {worker.state}"
        log.info("%s %s", what, worker.detail)
        if worker.state is WorkerState.ready:
            await router.add_worker(worker.rank, worker.role, worker.url)
            await self._ask_replay(worker.rank, 0)  # who begins to listen comes late
        else:
            router.remove_worker(worker.rank)
        if worker.state in OVER:
            await self._parts.stop_worker(worker.rank)
        for reports in self._followers:
            reports.put_nowait(worker)
        self._despair(worker)

    async def _gone(self, node: int, state: WorkerState, why: str) -> None:
        """An agent has ended or died; so have its workers."""
        self._heard.pop(node, None)
        async with self._changed:
            self._peers.pop(node, None)
            self._changed.notify_all()
        host, agent_log = self._nodes[node].host, self._attempt.agent_log(node)
        log.info("node %d (%s) is gone: %s", node, host, why)
        lost = f"node {node} ({host}) is gone: {why}; log: {agent_log}"
        for worker in [w for w in self._placed.values() if w.node == node]:
            before = self.workers.get(worker.rank)
            report = WorkerReport(
                rank=worker.rank,
                role=self._role(worker),
                model=worker.model,
                node=node,
                host=host,
                state=state,
                detail=lost if state is WorkerState.lost else "",
                log=str(self._attempt.worker_log(worker.rank)),
                start_s=before.start_s if before else 0.0,
            )
            await self._admit(report)
        await self._parts.node_lost(node, lost)
        if node >= self._planned:  # of a further job: it does not come again
            self._drop(node)

    def _drop(self, node: int) -> None:
        del self._nodes[node]
        for rank in [w.rank for w in self._placed.values() if w.node == node]:
            del self._placed[rank], self.workers[rank]

    def _role(self, worker: Worker) -> Role:
        """That it has now; the plan's until it was heard of."""
        heard = self.workers.get(worker.rank)
        return heard.role if heard else worker.role

    def _router(self, rank: int) -> Router:
        return self._routers[self._placed[rank].model]

    def _despair(self, last: WorkerReport) -> None:
        """Where none is left of the workers that are as the last one of them was."""
        if self._reshaped and any(w.state not in GONE for w in self.workers.values()):
            return  # the planner gives the role another worker
        alike = [w.rank for w in self._placed.values() if self._alike(w, last)]
        lost = [self.workers[rank] for rank in alike if rank in self.workers]
        if lost and len(lost) == len(alike) and all(w.state in GONE for w in lost):
            of = f" of model {last.model}" if last.model else ""
            how = lost[-1].detail or f"stopped on {lost[-1].host}"
            self._give_up(last.model, f"no {last.role} worker{of} is left; the last one: {how}")

    def _alike(self, worker: Worker, other: WorkerReport) -> bool:
        return worker.model == other.model and self._role(worker) is other.role

    def _give_up(self, model: str, why: str) -> None:
        """The model; with the last of them the job."""
        router = self._routers[model]
        if all(other.failure for other in self._routers.values() if other is not router):
            self._hopeless(EngineError(why))
        elif not router.failure:
            log.error("%s", why)
            router.fail(why)
