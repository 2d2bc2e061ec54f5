"""One worker of a node: started, watched, restarted, and reported to the head."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from msgspec import structs

from hpc_dynamo.agent.engine_process import EngineProcess
from hpc_dynamo.agent.engine_start import wait_until_ready
from hpc_dynamo.agent.events import KvEventRelay
from hpc_dynamo.agent.hang_watch import HangWatch
from hpc_dynamo.agent.placement import NodePlacer
from hpc_dynamo.agent.probe import NO_MODELS, EngineModels
from hpc_dynamo.agent.shard_leader import ShardLeader, wait_for_exit
from hpc_dynamo.agent.worker_restarts import WorkerRestarts
from hpc_dynamo.config import Config, Role, with_worker_options
from hpc_dynamo.engines import Placement, ShardRendezvous, engine, is_mpi_step
from hpc_dynamo.errors import EngineError
from hpc_dynamo.messages import NodeRecord, PrefixCaches, WorkerReport, WorkerState
from hpc_dynamo.process.child import Child
from hpc_dynamo.process.port_guard import PortGuard
from hpc_dynamo.process.session import SessionMonitor
from hpc_dynamo.process.stack_traces import abort_session
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Worker

# Between the report of a hang and the end of the engine. A request that loses its connection first
# may not be sent to the worker again, since it may be the cause.
MOVE_REQUESTS_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeContext:
    """Parts of the agent that its workers share. `send` sends a report to the head."""

    attempt: Attempt
    config: Config
    me: NodeRecord
    token: str
    placer: NodePlacer
    relay: KvEventRelay
    shard_leader: ShardLeader
    sessions: SessionMonitor
    send: Callable[[WorkerReport], Awaitable[None]]
    group: asyncio.TaskGroup

    def config_of(self, worker: Worker) -> Config:
        """Return the view of the configuration for a worker's engine."""
        return with_worker_options(self.config, worker.model, worker.role)

    def process(self, placement: Placement) -> EngineProcess:
        """Return the process of a worker or of one of its shards."""
        config = self.config_of(placement.worker)
        return EngineProcess(self.attempt, config, placement, self.me.host, self.sessions)

    def follower_process(
        self, worker: Worker, index: int, rendezvous: ShardRendezvous
    ) -> EngineProcess:
        """Return the process of shard `index` of a worker, which is not its first."""
        return self.process(self.placer.follower(worker, index, rendezvous))

    def follow_events(self, placement: Placement) -> AbstractAsyncContextManager[None]:
        """Relay the KV events of a process while the context is open. Enter it before the start."""
        config, rank = self.config_of(placement.worker), placement.worker.rank
        adapter = engine(config.engine.name)
        return self.relay.follow(rank, adapter.event_endpoints(config, placement))


class ManagedWorker:
    """Keeps the engine of one worker running until `stop`. `worker` has its present role.

    `report` is what the head knows of it; None before the first start and after `stop`.
    """

    def __init__(self, context: NodeContext, worker: Worker) -> None:
        self._context, self.worker = context, worker
        self.report: WorkerReport | None = None
        self.task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()  # held by the present process
        self._watch = HangWatch(context.token)
        self._port = PortGuard()
        self._ready_role: Role | None = None  # last role in which it was ready
        self._was_ready = False  # since its last start
        self._hangs = 0

    def start(self) -> None:
        """Start the worker, again if it runs already."""
        if self.task:
            self.task.cancel()
        run = self._keep_running()
        self.task = self._context.group.create_task(run, name=f"worker-{self.worker.rank}")

    def stop(self) -> None:
        """Stop the worker. `task` ends after its engine."""
        self.report = None
        self._port.close()
        if self.task:
            self.task.cancel()

    def set_role(self, role: Role, *, restart: bool) -> None:
        """Give the worker a new role. `restart`: its engine serves one role only."""
        self.worker = replace(self.worker, role=role)
        if restart:
            self.start()
        else:
            self._ready_role = role
            if self.report:
                self.report = structs.replace(self.report, role=role)

    def set_asleep(self, asleep: bool) -> None:
        """Expect no progress while it sleeps."""
        self._watch.set_asleep(asleep)
        if self.report:
            self.report = structs.replace(self.report, asleep=asleep)

    async def _keep_running(self) -> None:
        """Run the worker; restart it until `engine.max_restarts`."""
        limit = WorkerRestarts(self._context.config_of(self.worker).engine)
        restarts_left = 1
        while restarts_left:
            try:
                async with self._lock:
                    await self._run(self.worker)
            except EngineError as e:
                if self._ready_role not in (None, self.worker.role):
                    await self._revert_role(e)
                    continue
                restarts_left = limit.failed(e, time.monotonic(), self._was_ready)
                self._was_ready = False
                state = WorkerState.failed if restarts_left else WorkerState.lost
                log.error("%s; %d restarts left", e, restarts_left)
                await self._report(self.worker, state, detail=str(e))

    async def _revert_role(self, error: EngineError) -> None:
        """Return to the role in which the worker was ready, after it failed in a new one."""
        assert self._ready_role
        failed, role = self.worker, self._ready_role
        log.error("%s; it becomes a %s worker again", error, role)
        await self._report(failed, WorkerState.failed, detail=str(error))
        self.worker = replace(failed, role=role)

    async def _run(self, worker: Worker) -> None:
        """Start the worker once and wait for its end: raises EngineError, or is cancelled."""
        context = self._context
        placement = context.placer.leader(worker)
        await self._report(worker, WorkerState.starting)
        # The ranks of an MPI step are started by Slurm, not by other agents.
        has_followers = len(worker.shards) > 1 and not is_mpi_step(context.config, worker)
        async with (
            context.follow_events(placement),
            context.shard_leader.start_shards(placement, has_followers) as follower_exit,
        ):
            await self._serve(placement, follower_exit, has_followers)

    async def _serve(
        self, placement: Placement, follower_exit: "asyncio.Future[str]", has_followers: bool
    ) -> None:
        began, worker, token = time.monotonic(), placement.worker, self._context.token
        config, process = self._context.config_of(worker), self._context.process(placement)
        async with process.running() as child:
            waiting = wait_for_exit(process, child, follower_exit, has_followers)
            exited = asyncio.create_task(waiting)
            try:
                models = await wait_until_ready(config, process, worker.role, token, exited)
                start_s = time.monotonic() - began
                log.info("%s is ready after %.1f s", process.name, start_s)
                self._ready_role, self._was_ready = worker.role, True
                self._port.keep(placement.address, placement.ports[0])
                ready = WorkerState.ready
                await self._report(worker, ready, url=process.url, start_s=start_s, models=models)
                hang = await self._watch.wait_for_hang(config, process, child, worker.role, exited)
                raise await self._kill(process, child, hang) if hang else await exited
            finally:
                exited.cancel()

    async def _kill(self, process: EngineProcess, child: Child, hang: str) -> EngineError:
        """Kill an engine that hangs and return the error. Its requests are moved before.

        Its log then ends with the stack traces of its processes, if these are Python's.
        """
        self._hangs += 1
        error = process.error(hang)
        await self._report(self.worker, WorkerState.failed, detail=str(error))
        await asyncio.sleep(MOVE_REQUESTS_S)
        await asyncio.to_thread(abort_session, child.session)
        await child.kill()
        return error

    def _prefix_caches(self, worker: Worker) -> PrefixCaches:
        config = self._context.config_of(worker)
        return engine(config.engine.name).caches_of(config, worker)

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
        me = self._context.me
        self.report = WorkerReport(
            rank=worker.rank,
            role=worker.role,
            model=worker.model,
            node=me.node,
            host=me.host,
            state=state,
            url=url,
            log=str(self._context.attempt.worker_log(worker.rank)),
            detail=detail,
            start_s=start_s,
            hangs=self._hangs,
            caches=self._prefix_caches(worker),
            **structs.asdict(models),
        )
        await self._context.send(self.report)
