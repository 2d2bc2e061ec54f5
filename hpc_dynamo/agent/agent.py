"""The agent of a node: starts, restarts and stops its workers, and reports their state."""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import replace

from msgspec import structs

from hpc_dynamo.agent.engine_process import EngineProcess
from hpc_dynamo.agent.engine_start import wait_until_ready
from hpc_dynamo.agent.events import KvEventRelay
from hpc_dynamo.agent.hang_detector import check_interval_s
from hpc_dynamo.agent.hang_watches import HangWatches
from hpc_dynamo.agent.head_contact import HeadContact
from hpc_dynamo.agent.placement import NodePlacer
from hpc_dynamo.agent.probe import NO_MODELS, EngineModels
from hpc_dynamo.agent.shard_followers import ShardFollowers
from hpc_dynamo.agent.shard_leader import ShardLeader, wait_for_exit
from hpc_dynamo.agent.worker_restarts import WorkerRestarts
from hpc_dynamo.config import Config, Role, with_worker_options
from hpc_dynamo.defects import contain_defects
from hpc_dynamo.engines import Placement, engine, is_mpi_step
from hpc_dynamo.errors import EngineError
from hpc_dynamo.messages import (
    AgentStopped,
    ControlMessage,
    Hello,
    HelloRequest,
    KvReplayRequest,
    NodeRecord,
    NodesReplaced,
    SetAsleep,
    SetRole,
    ShardExited,
    StartShard,
    StopAgent,
    StopShard,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.process.child import Child
from hpc_dynamo.process.node_folder import private_node_folder
from hpc_dynamo.process.session import SessionMonitor
from hpc_dynamo.process.shared_memory import remove_unused_segments
from hpc_dynamo.process.stack_traces import abort_session
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan, Worker, with_replacements
from hpc_dynamo.wire import ControlClient

# Between the report of a hang and the end of the engine. A request that loses its connection first
# may not be sent to the worker again, since it may be the cause.
MOVE_REQUESTS_S = 1.0
LAST_MESSAGE_S = 1.0  # time to send the last message to the head

log = logging.getLogger(__name__)


class Agent:
    """Runs the workers of one node until the head stops it or falls silent."""

    def __init__(
        self,
        attempt: Attempt,
        me: NodeRecord,
        client: ControlClient[ControlMessage],
        token: str,
        layout: Plan | None = None,  # not the plan if nodes failed at the start
    ) -> None:
        self._attempt, self._me, self._client, self._token = attempt, me, client, token
        self._config: Config = attempt.config()
        self._layout = layout or attempt.plan()
        self._stopped = asyncio.Event()
        self.contact = HeadContact(self._config.cluster, attempt)
        self._workers = {w.rank: w for w in self._layout.on_node(me.node)}  # in their present roles
        self._ready_role = dict[int, Role]()  # last role in which a worker was ready
        self._was_ready = set[int]()  # since its last start
        self._worker_tasks = dict[int, asyncio.Task[None]]()
        self._locks = defaultdict[int, asyncio.Lock](asyncio.Lock)
        self._reports = dict[int, WorkerReport]()  # by rank, as the head knows them
        self._shard_leader = ShardLeader(client.send)
        self._watches, self._hangs = HangWatches(token), Counter[int]()  # by rank
        self._sessions = SessionMonitor(check_interval_s(self._config.engine.hang_timeout_s) / 4)

    def stop(self) -> None:
        """Stop this node's workers and end `run`. Other nodes continue."""
        self._stopped.set()

    async def run(self) -> None:
        """Run the node's workers. Returns once every engine process has exited."""
        await self._say_hello()
        await asyncio.to_thread(remove_unused_segments)
        with private_node_folder() as folder:
            await self._run(folder)
        await asyncio.to_thread(remove_unused_segments)
        with suppress(TimeoutError):  # the head may be dead
            async with asyncio.timeout(LAST_MESSAGE_S):
                await self._client.send(AgentStopped(node=self._me.node))

    async def _run(self, folder: str) -> None:
        me, logs = self._me, str(self._attempt.logs)
        place = self._placer = NodePlacer(self._config, me.address, self._token, folder, logs)
        async with asyncio.TaskGroup() as group:
            self._relay, self._group = KvEventRelay(folder, self._client.send, group), group
            make, send = lambda *shard: self._process(place.follower(*shard)), self._client.send
            self._shard_followers = ShardFollowers(me.node, self._layout.workers, make, send, group)
            for rank in self._workers:
                self._start_worker(rank)
            heartbeats = self.contact.send_heartbeats(self._client, me.node)
            heartbeat = group.create_task(heartbeats, name="heartbeat")
            listener = group.create_task(self._listen(), name="listen")
            watch = group.create_task(self.contact.watch(self.stop), name="head-contact")
            await self._stopped.wait()
            watch.cancel()
            listener.cancel()
            for worker in self._worker_tasks.values():
                worker.cancel()
            followers = group.create_task(self._shard_followers.stop_all(), name="shards")
            await asyncio.wait([followers, *self._worker_tasks.values()])
            heartbeat.cancel()

    async def _say_hello(self) -> None:
        reports, shards = tuple(self._reports.values()), self._shard_leader.started
        await self._client.send(Hello(node=self._me, workers=reports, shards=shards))

    async def _listen(self) -> None:
        """Handle messages of the head until it stops the agent."""
        while True:
            message = await self._client.receive()
            self.contact.heard()
            with contain_defects(log, message):
                await self._handle(message)

    async def _handle(self, message: ControlMessage) -> None:
        match message:
            case StopAgent(reason=reason):
                log.info("stop: %s", reason)
                self.stop()
            case HelloRequest():
                await self._say_hello()
            case KvReplayRequest(rank=rank, start=start):
                self._relay.replay(rank, start)
            case StartShard():
                self._shard_followers.start(message)
            case StopShard(rank=rank):
                self._shard_followers.stop(rank)
            case ShardExited():
                self._shard_leader.shard_exited(message)
            case SetAsleep(rank=rank, asleep=asleep) if rank in self._reports:
                self._watches.set_asleep(rank, asleep)
                self._reports[rank] = structs.replace(self._reports[rank], asleep=asleep)
            case NodesReplaced(replacements=replacements):
                self._use_layout(with_replacements(self._attempt.plan(), replacements))
            case SetRole(rank=rank) if rank in self._workers:
                self._set_role(message)

    def _set_role(self, message: SetRole) -> None:
        """Give a worker a new role; restart its engine if that serves one role only."""
        rank, role = message.rank, message.role
        self._workers[rank] = replace(self._workers[rank], role=role)
        if message.restart:
            self._start_worker(rank)
        else:
            self._ready_role[rank] = role
            self._reports[rank] = structs.replace(self._reports[rank], role=role)

    def _use_layout(self, layout: Plan) -> None:
        """Start the workers that have moved to this node or have shards on other nodes now, and
        stop those that have left this node."""
        before, here = self._workers, {w.rank: w for w in layout.on_node(self._me.node)}
        self._workers = {r: replace(w, role=before.get(r, w).role) for r, w in here.items()}
        self._shard_followers.place(layout.workers)
        for rank in before.keys() - here.keys():
            self._reports.pop(rank, None)
            self._worker_tasks[rank].cancel()
        for rank, worker in here.items():
            if rank not in before or before[rank].shards != worker.shards:
                self._start_worker(rank)

    def _start_worker(self, rank: int) -> None:
        """Start a worker, again if it runs already."""
        if rank in self._worker_tasks:
            self._worker_tasks[rank].cancel()
        task = self._group.create_task(self._keep_running(rank), name=f"worker-{rank}")
        self._worker_tasks[rank] = task

    async def _keep_running(self, rank: int) -> None:
        """Run a worker; restart it until `engine.max_restarts`."""
        settings = self._config_of(self._workers[rank]).engine
        limit = WorkerRestarts(settings)
        restarts_left = 1
        while restarts_left:
            try:
                async with self._locks[rank]:  # held by its earlier process
                    await self._run_worker(rank)
            except EngineError as e:
                worker = self._workers[rank]
                if self._ready_role.get(rank, worker.role) is not worker.role:
                    await self._revert_role(worker, e)
                    continue
                restarts_left = limit.failed(e, time.monotonic(), rank in self._was_ready)
                self._was_ready.discard(rank)
                state = WorkerState.failed if restarts_left else WorkerState.lost
                log.error("%s; %d restarts left", e, restarts_left)
                await self._report(worker, state, detail=str(e))

    async def _revert_role(self, worker: Worker, error: EngineError) -> None:
        """Return to the role in which the worker was ready, after it failed in a new one."""
        role = self._ready_role[worker.rank]
        log.error("%s; it becomes a %s worker again", error, role)
        await self._report(worker, WorkerState.failed, detail=str(error))
        self._workers[worker.rank] = replace(worker, role=role)

    async def _run_worker(self, rank: int) -> None:
        """Start a worker once and wait for its end: raises EngineError, or is cancelled."""
        worker = self._workers[rank]
        config, placement = self._config_of(worker), self._placer.leader(worker)
        await self._report(worker, WorkerState.starting)
        events = engine(config.engine.name).event_endpoints(config, placement)
        # The ranks of an MPI step are started by Slurm, not by other agents.
        has_followers = len(worker.shards) > 1 and not is_mpi_step(self._config, worker)
        async with (
            self._relay.follow(rank, events),
            self._shard_leader.start_shards(placement, has_followers) as follower_exit,
        ):
            await self._serve(placement, follower_exit, has_followers)

    async def _serve(
        self, placement: Placement, follower_exit: "asyncio.Future[str]", has_followers: bool
    ) -> None:
        began, worker = time.monotonic(), placement.worker
        config, process = self._config_of(worker), self._process(placement)
        async with process.running() as child:
            waiting = wait_for_exit(process, child, follower_exit, has_followers)
            exited = asyncio.create_task(waiting)
            try:
                models = await wait_until_ready(config, process, worker.role, self._token, exited)
                start_s = time.monotonic() - began
                log.info("%s is ready after %.1f s", process.name, start_s)
                self._ready_role[worker.rank] = worker.role
                self._was_ready.add(worker.rank)
                ready = WorkerState.ready
                await self._report(worker, ready, url=process.url, start_s=start_s, models=models)
                hang = await self._watches.wait_for_hang(config, process, child, worker, exited)
                raise await self._kill(worker.rank, process, child, hang) if hang else await exited
            finally:
                exited.cancel()

    async def _kill(
        self, rank: int, process: EngineProcess, child: Child, hang: str
    ) -> EngineError:
        """Kill an engine that hangs and return the error. Its requests are moved before.

        Its log then ends with the stack traces of its processes, if these are Python's.
        """
        self._hangs[rank] += 1
        error = process.error(hang)
        await self._report(self._workers[rank], WorkerState.failed, detail=str(error))
        await asyncio.sleep(MOVE_REQUESTS_S)
        await asyncio.to_thread(abort_session, child.session)
        await child.kill()
        return error

    def _config_of(self, worker: Worker) -> Config:
        return with_worker_options(self._config, worker.model, worker.role)

    def _process(self, placement: Placement) -> EngineProcess:
        config = self._config_of(placement.worker)
        return EngineProcess(self._attempt, config, placement, self._me.host, self._sessions)

    async def _report(
        self,
        worker: Worker,
        state: WorkerState,
        *,
        url: str = "",
        detail: str = "",
        start_s: float = 0.0,
        models: EngineModels = NO_MODELS,
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
            hangs=self._hangs[worker.rank],
            **structs.asdict(models),
        )
        self._reports[worker.rank] = report
        await self._client.send(report)
