"""One a node: starts this node's engines, watches them, tells the head, ends them in order.

An engine counts as ready when it has served a token: engines answer /health long before.
"""

import asyncio
import logging
import signal
import time
from contextlib import suppress
from dataclasses import replace

from hpc_dynamo.agent.events import EventRelay, private_folder
from hpc_dynamo.agent.place import free_ports, visible_gpus
from hpc_dynamo.agent.probe import NOTHING, Served, serves, what_is_served
from hpc_dynamo.child import Child, clean_environment
from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines import Place, advice, contained, dialect, engine, for_worker, probing
from hpc_dynamo.errors import EngineError, WireError
from hpc_dynamo.http import Client
from hpc_dynamo.messages import (
    Bye,
    ControlMessage,
    Heartbeat,
    Hello,
    KvReplay,
    NodeRecord,
    Stop,
    Turn,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.run import Attempt, write_atomic
from hpc_dynamo.topology import Plan, Worker
from hpc_dynamo.wire import Client as ControlClient

HEARTBEAT_S = 1.0
BYE_S = 1.0
PROBE_S = 0.25  # between two tries to get a first token; engines announce nothing
TAIL_BYTES = 4000
OUT_OF_MEMORY = "if it ran out of host memory: a larger engine.memory_gb, or fewer workers a node"

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
        self._life_began: dict[int, int] = {}  # by rank: size of the log before this life
        self._workers = {w.rank: w for w in self._plan.on_node(me.node)}  # as their roles are now
        self._served_as = dict[int, Role]()  # by rank: the last role in which it was ready
        self._keepers = dict[int, asyncio.Task[None]]()

    def stop(self) -> None:
        """End this node's part, as if the head had said so."""
        self._stopped.set()

    async def run(self) -> None:
        """Returns when every engine process on this node has ended."""
        await self._client.send(Hello(node=self._me))
        with private_folder() as folder:
            await self._run(folder)
        with suppress(TimeoutError):  # a head that is gone takes nothing
            async with asyncio.timeout(BYE_S):
                await self._client.send(Bye(node=self._me.node))

    async def _run(self, folder: str) -> None:
        async with asyncio.TaskGroup() as group:
            self._relay, self._group = EventRelay(folder, self._client.send, group), group
            for rank in self._workers:
                self._employ(rank)
            beat = group.create_task(self._beat(), name="heartbeat")
            listen = group.create_task(self._listen(), name="listen")
            await self._stopped.wait()
            listen.cancel()
            keepers = list(self._keepers.values())
            for keeper in keepers:
                keeper.cancel()
            if keepers:
                await asyncio.wait(keepers)
            beat.cancel()

    async def _beat(self) -> None:
        while True:
            await self._client.send(Heartbeat(node=self._me.node))
            await asyncio.sleep(HEARTBEAT_S)

    async def _listen(self) -> None:
        """Until the head ends the job or falls silent."""
        while True:
            try:
                message = await self._client.receive(self._config.cluster.silence_s)
            except WireError as e:
                log.error("head lost, ending this node's workers: %s", e)
                return self.stop()
            match message:
                case Stop(reason=reason):
                    log.info("stop: %s", reason)
                    self.stop()
                case KvReplay(rank=rank, start=start):
                    self._relay.replay(rank, start)
                case Turn(rank=rank) as turn if rank in self._workers:
                    self._turn(turn)

    def _turn(self, turn: Turn) -> None:
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
        """Start the worker, again when it dies, at most `engine.restarts` times; `former` kept
        its engine until now."""
        if former:
            await asyncio.wait([former])
        left = self._config_of(self._workers[rank]).engine.restarts
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
        place = self._place(worker)
        await self._report(worker, WorkerState.starting)
        config = self._config_of(worker)
        events = engine(config.engine.name).events(config, place)
        async with self._relay.follow(worker.rank, events):
            await self._serve(worker, place)

    async def _serve(self, worker: Worker, place: Place) -> None:
        began = time.monotonic()
        url = f"http://{place.address}:{place.ports[0]}"
        config = self._config_of(worker)
        command = contained(config, place, engine(config.engine.name).command(config, place))
        path = self._attempt.worker_log(worker.rank)
        log.info("worker %d (%s) starts: %s", worker.rank, worker.title, " ".join(command.argv))
        self._life_began[worker.rank] = path.stat().st_size if path.exists() else 0
        for name, text in command.files.items():
            write_atomic(self._attempt.logs / name, text.encode(), mode=0o600)
        env = clean_environment(command.env)
        child = await Child.start(command.argv, env, path, config.engine.stop_timeout_s)
        try:
            served = await self._until_served(worker, child, url)
            start_s = time.monotonic() - began
            log.info("worker %d (%s) is ready after %.1f s", worker.rank, worker.title, start_s)
            self._served_as[worker.rank] = worker.role
            await self._report(worker, WorkerState.ready, url=url, start_s=start_s, served=served)
            raise self._died(worker, await child.wait())
        finally:
            await child.stop()

    def _config_of(self, worker: Worker) -> Config:
        return for_worker(self._config, worker)

    def _place(self, worker: Worker) -> Place:
        gpus = visible_gpus(worker.shards[0].gpus)
        name = self._config_of(worker).engine.name
        ports = free_ports(self._me.address, engine(name).ports)
        events, logs = self._relay.folder, str(self._attempt.logs)
        return Place(worker, self._me.address, ports, gpus, self._token, events, logs)

    async def _until_served(self, worker: Worker, child: Child, url: str) -> Served:
        """Returns once the engine has served a token. Raises EngineError."""
        timeout_s = self._config_of(worker).engine.ready_timeout_s
        died = asyncio.create_task(child.wait())
        served = asyncio.create_task(self._probe(worker, url))
        both = {died, served}
        try:
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                raise self._died(worker, died.result())
            if not served.done():
                hint = "engine.ready_timeout_s, if the model is large or the disk slow"
                raise self._failed(worker, f"served no token within {timeout_s:.0f} s", hint)
            return served.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _probe(self, worker: Worker, url: str) -> Served:
        """What is served, once a token was. Raises EngineError where the log says never."""
        config = self._config_of(worker)
        never_ready = engine(config.engine.name).never_ready
        async with Client.bearer(self._token) as http:
            fields = probing(dialect(config), worker.role)
            while not await serves(http, url, config.model.served_name, fields):
                tail = self._tail(worker)
                if any(sign in tail for sign in never_ready):
                    raise self._failed(worker, "will never be ready")
                await asyncio.sleep(PROBE_S)
            return await what_is_served(http, url)

    def _died(self, worker: Worker, code: int) -> EngineError:
        if code <= 128:
            return self._failed(worker, f"exited with code {code}")
        killed = OUT_OF_MEMORY if code == 128 + signal.SIGKILL else ""
        return self._failed(worker, f"was killed by signal {code - 128}", killed)

    def _failed(self, worker: Worker, how: str, hint: str = "") -> EngineError:
        tail = self._tail(worker)
        last = next((line for line in reversed(tail.splitlines()) if line.strip()), "")
        what = f"{self._name(worker)} {how}; it last said: {last.strip()}"
        path = self._attempt.worker_log(worker.rank)
        return EngineError(what, hint=advice(self._config_of(worker), tail) or hint, log=path)

    def _tail(self, worker: Worker) -> str:
        """The end of a worker's log, of this life alone."""
        path = self._attempt.worker_log(worker.rank)
        with path.open("rb") as file:
            file.seek(max(self._life_began[worker.rank], path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")

    def _name(self, worker: Worker) -> str:
        return f"worker {worker.rank} ({worker.title}) on {self._me.host}"

    async def _report(
        self,
        worker: Worker,
        state: WorkerState,
        *,
        url: str = "",
        detail: str = "",
        start_s: float = 0.0,
        served: Served = NOTHING,
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
            context_tokens=served.context_tokens,
        )
        await self._client.send(report)
