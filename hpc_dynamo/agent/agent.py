"""The agent of a node: starts, restarts and stops its workers, and reports their state."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from hpc_dynamo.agent.events import KvEventRelay
from hpc_dynamo.agent.hang_detector import check_interval_s
from hpc_dynamo.agent.head_contact import HeadContact
from hpc_dynamo.agent.managed_worker import ManagedWorker, NodeContext
from hpc_dynamo.agent.placement import NodePlacer
from hpc_dynamo.agent.shard_followers import ShardFollowers
from hpc_dynamo.agent.shard_leader import ShardLeader
from hpc_dynamo.config import Config
from hpc_dynamo.defects import contain_defects
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
)
from hpc_dynamo.process.node_folder import private_node_folder
from hpc_dynamo.process.session import SessionMonitor
from hpc_dynamo.process.shared_memory import remove_unused_segments
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan, Worker, with_replacements
from hpc_dynamo.wire import ControlClient

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
        # Workers of this node by rank, and those that have left it.
        self._workers, self._departed = dict[int, ManagedWorker](), dict[int, ManagedWorker]()
        self._shard_leader = ShardLeader(client.send)

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
        node, workers = self._me.node, self._layout.workers
        async with asyncio.TaskGroup() as group:
            context = self._context = self._node_context(folder, group)
            self._shard_followers = ShardFollowers(
                node,
                workers,
                context.follower_process,
                context.follow_events,
                self._client.send,
                group,
            )
            for worker in self._layout.on_node(node):
                self._place(worker)
            heartbeats = self.contact.send_heartbeats(self._client, node)
            heartbeat = group.create_task(heartbeats, name="heartbeat")
            listener = group.create_task(self._listen(), name="listen")
            watch = group.create_task(self.contact.watch(self.stop), name="head-contact")
            await self._stopped.wait()
            watch.cancel()
            listener.cancel()
            every = (*self._workers.values(), *self._departed.values())
            for known in every:
                known.stop()
            followers = group.create_task(self._shard_followers.stop_all(), name="shards")
            await asyncio.wait([followers, *(known.task for known in every if known.task)])
            heartbeat.cancel()

    def _node_context(self, folder: str, group: asyncio.TaskGroup) -> NodeContext:
        config, me, token = self._config, self._me, self._token
        return NodeContext(
            attempt=self._attempt,
            config=config,
            me=me,
            token=token,
            placer=NodePlacer(config, me.address, token, folder, str(self._attempt.logs)),
            relay=KvEventRelay(folder, self._client.send, group),
            shard_leader=self._shard_leader,
            sessions=SessionMonitor(check_interval_s(config.engine.hang_timeout_s) / 4),
            send=self._client.send,
            group=group,
        )

    async def _say_hello(self) -> None:
        reports = tuple(known.report for known in self._workers.values() if known.report)
        shards = self._shard_leader.started
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
            case KvReplayRequest(rank=rank, dp_rank=dp_rank, start=start):
                self._context.relay.replay(rank, start, dp_rank)
            case StartShard():
                self._shard_followers.start(message)
            case StopShard(rank=rank):
                self._shard_followers.stop(rank)
            case ShardExited():
                self._shard_leader.shard_exited(message)
            case SetAsleep(rank=rank, asleep=asleep) if rank in self._workers:
                self._workers[rank].set_asleep(asleep)
            case NodesReplaced(replacements=replacements):
                self._use_layout(with_replacements(self._attempt.plan(), replacements))
            case SetRole(rank=rank, role=role, restart=restart) if rank in self._workers:
                self._workers[rank].set_role(role, restart=restart)

    def _use_layout(self, layout: Plan) -> None:
        """Start the workers that have moved to this node or have shards on other nodes now, and
        stop those that have left this node."""
        here = {w.rank: w for w in layout.on_node(self._me.node)}
        self._shard_followers.place(layout.workers)
        for rank in self._workers.keys() - here.keys():
            self._departed[rank] = self._workers.pop(rank)
            self._departed[rank].stop()
        for worker in here.values():
            self._place(worker)

    def _place(self, worker: Worker) -> None:
        """Start a worker of this node, again if its shards have moved. It keeps its role."""
        rank = worker.rank
        if known := self._workers.get(rank):
            moved = known.worker.shards != worker.shards
            known.worker = replace(worker, role=known.worker.role)
        else:
            known = self._departed.pop(rank, None) or ManagedWorker(self._context, worker)
            self._workers[rank], known.worker, moved = known, worker, True
        if moved:
            known.start()
