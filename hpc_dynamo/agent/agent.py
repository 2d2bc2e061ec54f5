"""One a node: starts this node's engines, watches them, tells the head, ends them in order."""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace

from hpc_dynamo.agent.engine_process import EngineProcess
from hpc_dynamo.agent.engine_start import wait_until_ready
from hpc_dynamo.agent.events import KvEventRelay, private_socket_dir
from hpc_dynamo.agent.placement import free_ports, visible_gpus
from hpc_dynamo.agent.probe import NO_MODELS, EngineModels
from hpc_dynamo.agent.shard_followers import ShardFollowers
from hpc_dynamo.agent.shard_leader import ShardLeader, wait_for_exit
from hpc_dynamo.bootstrap.address import interface_with_address
from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines import (
    EngineAdapter,
    Placement,
    ShardRendezvous,
    engine,
    for_worker,
    is_mpi_step,
)
from hpc_dynamo.errors import EngineError, WireError
from hpc_dynamo.messages import (
    AgentStopped,
    ControlMessage,
    Heartbeat,
    Hello,
    KvReplayRequest,
    NodeRecord,
    SetRole,
    ShardExited,
    StartShard,
    StopAgent,
    StopShard,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan, Worker
from hpc_dynamo.wire import ControlClient as ControlClient

HEARTBEAT_S = 1.0
BYE_S = 1.0

log = logging.getLogger(__name__)


class Agent:
    """Runs the workers of one node until the head says stop, or is gone."""

    def __init__(
        self, attempt: Attempt, me: NodeRecord, client: ControlClient[ControlMessage], token: str
    ) -> None:
        self._attempt, self._me, self._client, self._token = attempt, me, client, token
        self._config: Config = attempt.config()
        self._plan: Plan = attempt.plan()
        self._stopped = asyncio.Event()
        self._workers = {w.rank: w for w in self._plan.on_node(me.node)}  # as their roles are now
        self._served_as = dict[int, Role]()  # by rank: the last role in which it was ready
        self._keepers = dict[int, asyncio.Task[None]]()
        self._gathering = ShardLeader(client.send)

    def stop(self) -> None:
        """End this node's part, as if the head had said so."""
        self._stopped.set()

    async def run(self) -> None:
        """Returns when every engine process on this node has ended."""
        await self._client.send(Hello(node=self._me))
        with private_socket_dir() as folder:
            await self._run(folder)
        with suppress(TimeoutError):  # a head that is gone takes nothing
            async with asyncio.timeout(BYE_S):
                await self._client.send(AgentStopped(node=self._me.node))

    async def _run(self, folder: str) -> None:
        async with asyncio.TaskGroup() as group:
            self._relay, self._group = KvEventRelay(folder, self._client.send, group), group
            self._followers = ShardFollowers(
                self._me.node, self._plan.workers, self._further, self._client.send, group
            )
            for rank in self._workers:
                self._employ(rank)
            beat = group.create_task(self._beat(), name="heartbeat")
            listen = group.create_task(self._listen(), name="listen")
            await self._stopped.wait()
            listen.cancel()
            for keeper in self._keepers.values():
                keeper.cancel()
            followers = group.create_task(self._followers.stop_all(), name="followers")
            await asyncio.wait([followers, *self._keepers.values()])
            beat.cancel()

    async def _beat(self) -> None:
        while True:
            await self._client.send(Heartbeat(node=self._me.node))
            await asyncio.sleep(HEARTBEAT_S)

    async def _listen(self) -> None:
        """Until the head ends the job or falls silent."""
        while True:
            try:
                message = await self._client.receive(self._config.cluster.heartbeat_timeout_s)
            except WireError as e:
                log.error("head lost, ending this node's workers: %s", e)
                return self.stop()
            match message:
                case StopAgent(reason=reason):
                    log.info("stop: %s", reason)
                    self.stop()
                case KvReplayRequest(rank=rank, start=start):
                    self._relay.replay(rank, start)
                case StartShard():
                    self._followers.start(message)
                case StopShard(rank=rank):
                    self._followers.stop(rank)
                case ShardExited():
                    self._gathering.shard_exited(message)
                case SetRole(rank=rank) as turn if rank in self._workers:
                    self._turn(turn)

    def _turn(self, turn: SetRole) -> None:
        """From now on a worker has another role; its engine too, where it cannot have both."""
        self._workers[turn.rank] = replace(self._workers[turn.rank], role=turn.role)
        if turn.restart:
            self._employ(turn.rank, self._keepers[turn.rank])
        else:
            self._served_as[turn.rank] = turn.role

    def _employ(self, rank: int, former: "asyncio.Task[None] | None" = None) -> None:
        if former:
            former.cancel()
        keeper = self._keep(rank, former)
        self._keepers[rank] = self._group.create_task(keeper, name=f"worker-{rank}")

    async def _keep(self, rank: int, former: "asyncio.Task[None] | None") -> None:
        """Start the worker, again when it dies, at most `engine.max_restarts` times; `former` kept
        its engine until now."""
        if former:
            await asyncio.wait([former])
        left = self._seen(self._workers[rank]).engine.max_restarts
        while left >= 0:
            try:
                await self._live(rank)
            except EngineError as e:
                worker = self._workers[rank]
                if self._served_as.get(rank, worker.role) is not worker.role:
                    await self._turn_back(worker, e)
                    continue
                state = WorkerState.failed if left else WorkerState.lost
                log.error("%s; %d restarts left", e, left)
                await self._report(worker, state, detail=str(e))
                left -= 1

    async def _turn_back(self, worker: Worker, error: EngineError) -> None:
        """It never served in its new role, so it takes the old one again."""
        old = self._served_as[worker.rank]
        log.error("%s; it becomes a %s worker again", error, old)
        await self._report(worker, WorkerState.failed, detail=str(error))
        self._workers[worker.rank] = replace(worker, role=old)

    async def _live(self, rank: int) -> None:
        """One life of a worker. Ends by EngineError or cancellation."""
        worker = self._workers[rank]
        place = self._first_place(worker)
        await self._report(worker, WorkerState.starting)
        events = self._engine(worker).event_endpoints(self._seen(worker), place)
        async with (
            self._relay.follow(rank, events),
            self._gathering.start_shards(place, self._is_gathered(worker)) as lost,
        ):
            await self._serve(place, lost)

    async def _serve(self, place: Placement, lost: "asyncio.Future[str]") -> None:
        began, worker = time.monotonic(), place.worker
        part, gathered = self._part(place), self._is_gathered(worker)
        async with part.running() as child:
            over = asyncio.create_task(wait_for_exit(part, child, lost, gathered))
            try:
                role, token = worker.role, self._token
                served = await wait_until_ready(self._seen(worker), part, role, token, over)
                start_s = time.monotonic() - began
                log.info("%s is ready after %.1f s", part.name, start_s)
                self._served_as[worker.rank] = worker.role
                ready = WorkerState.ready
                await self._report(worker, ready, url=part.url, start_s=start_s, served=served)
                raise await over
            finally:
                over.cancel()

    def _is_gathered(self, worker: Worker) -> bool:
        """Whether it has further parts, on other nodes, which their agents start."""
        spread = len(worker.shards) > 1
        return spread and not is_mpi_step(self._config, worker)

    def _seen(self, worker: Worker) -> Config:
        return for_worker(self._config, worker)

    def _engine(self, worker: Worker) -> EngineAdapter:
        return engine(self._seen(worker).engine.name)

    def _first_place(self, worker: Worker) -> Placement:
        """Of a worker, or of its first part; then also where all its parts meet."""
        adapter = self._engine(worker)
        own = adapter.port_count
        if len(worker.shards) == 1:
            return self._place(worker, free_ports(self._me.address, own))
        ports = free_ports(self._me.address, own + adapter.rendezvous_port_count)
        return self._place(worker, ports[:own], 0, ShardRendezvous(self._me.address, ports[own:]))

    def _further(self, worker: Worker, part: int, meeting: ShardRendezvous) -> EngineProcess:
        ports = free_ports(self._me.address, self._engine(worker).port_count)
        return self._part(self._place(worker, ports, part, meeting))

    def _place(
        self,
        worker: Worker,
        ports: tuple[int, ...],
        part: int = 0,
        meeting: ShardRendezvous | None = None,
    ) -> Placement:
        return Placement(
            worker,
            self._me.address,
            ports,
            visible_gpus(worker.shards[part].gpus),
            self._token,
            self._relay.folder,
            str(self._attempt.logs),
            part,
            meeting,
            interface_with_address(self._me.address),
        )

    def _part(self, place: Placement) -> EngineProcess:
        return EngineProcess(self._attempt, self._seen(place.worker), place, self._me.host)

    async def _report(
        self,
        worker: Worker,
        state: WorkerState,
        *,
        url: str = "",
        detail: str = "",
        start_s: float = 0.0,
        served: EngineModels = NO_MODELS,
    ) -> None:
        report = WorkerReport(
            rank=worker.rank,
            role=worker.role,
            model=worker.model,
            node=self._me.node,
            host=self._me.host,
            state=state,
            url=url,
            log=str(self._attempt.worker_log(worker.rank)),
            detail=detail,
            start_s=start_s,
            models=served.models,
            adapters=dict(served.adapters),
            context_tokens=served.context_tokens,
            operations=served.operations,
        )
        await self._client.send(report)
