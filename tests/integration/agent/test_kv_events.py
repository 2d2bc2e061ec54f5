"""KV events from engines to the head: a real agent with simulators; the test is its head."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from typing import Any

import aiohttp
import msgspec
import pytest

from hpc_dynamo.agent import Agent
from hpc_dynamo.agent.events import KvEventRelay
from hpc_dynamo.config import Config, Device, Engine, Model, Pool, Role, Router, Topology
from hpc_dynamo.engines import EventEndpoints
from hpc_dynamo.errors import EngineError
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.kv.events import REPLAY_END, BlockStored, KvEventBatch, decode_events, encode_events
from hpc_dynamo.messages import (
    ControlMessage,
    Heartbeat,
    Hello,
    KvEvents,
    KvReplayRequest,
    NodeRecord,
    NodesReplaced,
    Roster,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.process.node_folder import private_node_folder
from hpc_dynamo.router import RequestRouter
from hpc_dynamo.run import Attempt, Run
from hpc_dynamo.tasks.node import CODEC
from hpc_dynamo.topology import plan
from hpc_dynamo.wire import ControlClient, ControlServer, KvEventPublisher

HERE = "127.0.0.1"
SOON_S = 60.0
NEVER_S = 0.5
PROMPT = list(range(100, 140))  # two blocks of 16, and a half
CONFIG = Config(
    engine=Engine(name="simulator", device=Device.cpu, args={"timing": "instant"}, max_restarts=1),
    model=Model(name="m"),
    topology=Topology(aggregated=Pool(workers=1)),
)


def record(attempt: Attempt) -> NodeRecord:
    log = str(attempt.agent_log(0))
    return NodeRecord(node=0, host="here", address=HERE, pid=1, log=log)


class Head:
    """All messages of the agent, in order."""

    def __init__(self, server: ControlServer[ControlMessage], token: str) -> None:
        self.server, self.token = server, token
        self.peer = b""
        self.events = list[KvEvents]()  # since the last report

    async def hear(self) -> ControlMessage:
        async with asyncio.timeout(SOON_S):
            self.peer, message = await self.server.receive()
        if isinstance(message, Heartbeat):
            await self.send(message)
        if isinstance(message, KvEvents):
            self.events.append(message)
        return message

    async def expect_report(self, state: WorkerState) -> WorkerReport:
        """Wait for this report, which must be the next one; drop earlier events."""
        while not isinstance(message := await self.hear(), WorkerReport):
            pass
        assert message.state is state, message.detail
        return message

    async def receive_replay(self) -> list[int]:
        """Return and drop the numbers of all events up to the end of a replay."""
        while not (self.events and self.events[-1].seq == -1):
            assert not isinstance(await self.hear(), WorkerReport)
        numbers = [events.seq for events in self.events[:-1]]
        self.events.clear()
        return numbers

    async def wait_for_heartbeats(self, number: int) -> None:
        """Receive messages until some heartbeats have arrived, and all messages before them."""
        while number:
            number -= isinstance(await self.hear(), Heartbeat)

    async def send(self, message: ControlMessage) -> None:
        assert await self.server.send(self.peer, message)

    async def complete(self, worker: WorkerReport, prompt: list[int]) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        body = {"model": "m", "prompt": prompt, "max_tokens": 1}
        async with aiohttp.ClientSession(headers=headers) as session, asyncio.timeout(SOON_S):
            async with session.post(f"{worker.url}/v1/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()

    async def complete_until_events(self, worker: WorkerReport) -> int:
        """Send different prompts until live events arrive; return how many it took."""
        stories = 0
        while not self.events:
            stories += 1
            await self.complete(worker, [stories * 100 + token for token in range(40)])
            for _ in range(2):
                if not self.events:
                    await self.wait_for_heartbeats(1)
        return stories


@asynccontextmanager
async def agent_of(run: Run, config: Config) -> AsyncIterator[tuple[Head, Agent]]:
    """Run an agent. It must be stopped before the context ends."""
    attempt, secrets = run.new_attempt(config, plan(config)), run.secrets()
    server = ControlServer(HERE, secrets.keys, CODEC)
    client = ControlClient(server.endpoint, secrets.keys, CODEC)
    agent = Agent(attempt, record(attempt), client, secrets.token)
    head = Head(server, secrets.token)
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(agent.run())
            await head.hear()  # its hello
            yield head, agent
            agent.stop()
            async with asyncio.timeout(SOON_S):
                await running
    finally:
        client.close()
        server.close()


def args(**more: Any) -> Config:
    return replace(CONFIG, engine=replace(CONFIG.engine, args={**CONFIG.engine.args, **more}))


async def test_agent_relays_events_live_and_replays_them_on_request(run: Run) -> None:
    async with agent_of(run, CONFIG) as (head, _):
        await head.expect_report(WorkerState.starting)
        worker = await head.expect_report(WorkerState.ready)
        stories = await head.complete_until_events(worker)
        last = head.events[-1]
        (event,) = decode_events(last.payload).events
        assert isinstance(event, BlockStored)
        assert event.token_ids == [stories * 100 + token for token in range(32)]
        assert (last.rank, last.seq, event.block_size) == (0, stories - 1, 16)
        head.events.clear()
        await head.send(KvReplayRequest(rank=0, start=0))
        await head.send(KvReplayRequest(rank=0, start=stories - 1))
        assert await head.receive_replay() == [*range(stories)]
        assert await head.receive_replay() == [stories - 1]


async def test_agent_relays_no_events_for_an_approximate_router(run: Run) -> None:
    config = replace(CONFIG, router=Router(kv_events=False))
    async with agent_of(run, config) as (head, _):
        await head.expect_report(WorkerState.starting)
        worker = await head.expect_report(WorkerState.ready)
        await head.complete(worker, PROMPT)
        await head.send(KvReplayRequest(rank=0, start=0))
        assert await head.receive_replay() == []


async def test_no_event_of_a_worker_arrives_after_its_exit(run: Run) -> None:
    """The probe is the first request after each start, so workers die at the third of the test."""
    async with agent_of(run, args(**{"fail-after-requests": 3})) as (head, _):
        await head.expect_report(WorkerState.starting)
        for after in (WorkerState.failed, WorkerState.lost):
            worker = await head.expect_report(WorkerState.ready)
            for story in range(2):
                await head.complete(worker, [story, *PROMPT])
            await head.send(KvReplayRequest(rank=0, start=0))
            assert set(await head.receive_replay()) == {0, 1}, "a life's numbers begin with 0"
            with pytest.raises(aiohttp.ClientError):
                await head.complete(worker, PROMPT)
            await head.expect_report(after)
            head.events.clear()
            if after is WorkerState.failed:
                await head.expect_report(WorkerState.starting)
                assert head.events == []
        await head.send(KvReplayRequest(rank=0, start=0))
        await head.wait_for_heartbeats(2)
        assert head.events == [], "a dead worker says nothing"


async def test_agent_ends_although_its_head_is_dead(run: Run) -> None:
    config = replace(CONFIG, topology=Topology(aggregated=Pool(workers=1), nodes=2))
    attempt, secrets = run.new_attempt(config, plan(config)), run.secrets()
    server = ControlServer(HERE, secrets.keys, CODEC)
    client = ControlClient(server.endpoint, secrets.keys, CODEC)
    me = msgspec.structs.replace(record(attempt), node=1)  # a node without workers
    agent = Agent(attempt, me, client, secrets.token)
    running = asyncio.create_task(agent.run())
    head = Head(server, secrets.token)
    assert isinstance(await head.hear(), Hello)
    server.close()
    await fill_socket(client)
    agent.stop()
    async with asyncio.timeout(SOON_S):
        await running
    client.close()


async def fill_socket(client: ControlClient[ControlMessage]) -> None:
    """Fill the socket until it blocks."""
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(NEVER_S):
                await client.send(KvEvents(rank=0, seq=0, payload=b""))


# The relay without an agent.


@asynccontextmanager
async def relay(send: Callable[[KvEvents], Awaitable[None]]) -> AsyncIterator[KvEventPublisher]:
    """Return a relay of this publisher, which has a subscriber already."""
    async with asyncio.TaskGroup() as group:
        with private_node_folder() as folder:
            made = KvEventRelay(folder, send, group)
            at = EventEndpoints(f"ipc://{folder}/0", f"ipc://{folder}/0r")
            async with made.follow(0, at):
                publisher = KvEventPublisher(at.live, at.replay, topic="", buffer_steps=10)
                with closing(publisher):
                    yield publisher


async def test_many_events_do_not_delay_other_tasks() -> None:
    got, steps = list[int](), list[int]()
    full = asyncio.Event()

    async def send(events: KvEvents) -> None:
        got.append(events.seq)
        steps.append(wait_for_heartbeats)
        if len(got) > 500:
            full.set()

    wait_for_heartbeats = 0
    async with relay(send) as publisher, asyncio.timeout(SOON_S):
        while not full.is_set():
            wait_for_heartbeats += 1
            for _ in range(100):
                await publisher.publish(b"x" * 1000)
            await asyncio.sleep(0)
    assert len(set(steps)) > 100, "a heartbeat would have waited for all of them"
    assert got == sorted(set(got))


async def test_slow_head_has_one_pending_message_per_worker() -> None:
    got = list[int]()
    started = asyncio.Event()

    async def send(events: KvEvents) -> None:
        got.append(events.seq)
        started.set()
        await asyncio.Event().wait()

    async with relay(send) as publisher, asyncio.timeout(SOON_S):
        while not started.is_set():
            await publisher.publish(b"x")
            await asyncio.sleep(0)
        for _ in range(5000):
            await publisher.publish(b"x")
            await asyncio.sleep(0)
    assert len(got) == 1


async def test_head_indexes_events_and_requests_missing_ones(run: Run) -> None:
    attempt, secrets = run.new_attempt(CONFIG, plan(CONFIG)), run.secrets()
    server = ControlServer(HERE, secrets.keys, CODEC)
    agent = ControlClient(server.endpoint, secrets.keys, CODEC)
    roster = Roster(nodes=(record(attempt),), method="", seconds=0)
    router = RequestRouter.from_config(CONFIG)
    members = Membership(attempt, roster, server, {"": router}, fail_job)
    listening = asyncio.create_task(members.listen())
    try:
        await agent.send(Hello(node=record(attempt)))
        await agent.send(KvEvents(rank=0, seq=7, payload=batch(0)))  # its worker has not joined yet
        await agent.send(READY)
        assert await agent.receive(SOON_S) == NodesReplaced(replacements={}, restart_count=0)
        assert await agent.receive(SOON_S) == KvReplayRequest(rank=0, start=0)
        for seq in (0, REPLAY_END, 2):
            await agent.send(KvEvents(rank=0, seq=seq, payload=batch(seq)))
        assert await agent.receive(SOON_S) == KvReplayRequest(rank=0, start=1)
        assert (router.kv_state.batches, len(router.kv_state.confirmed), router.kv_state.gaps) == (
            1,
            1,
            1,
        )
        for seq in (1, 2, REPLAY_END, 4):
            await agent.send(KvEvents(rank=0, seq=seq, payload=batch(seq)))
        assert await agent.receive(SOON_S) == KvReplayRequest(rank=0, start=3)
        assert (router.kv_state.batches, len(router.kv_state.confirmed)) == (3, 3)
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        agent.close()
        server.close()


def batch(number: int) -> bytes:
    """Return an event of one stored block that starts a prompt."""
    stored = BlockStored([number], None, [number + 1] * 16, 16)
    return b"" if number == REPLAY_END else encode_events(KvEventBatch(0.0, [stored]))


READY = WorkerReport(
    rank=0, role=Role.aggregated, node=0, host=HERE, state=WorkerState.ready, url="http://x"
)


def fail_job(error: EngineError) -> None:
    raise error
