"""KV events of a worker's data-parallel ranks, from the engine through the agent to the router."""

import array
import asyncio
import http.client
import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from msgspec import structs

from hpc_dynamo.config import Device, Pool, Role, Router, Topology
from hpc_dynamo.engines.event_options import shard_ranks
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.kv.events import REPLAY_END
from hpc_dynamo.messages import (
    Hello,
    KvEvents,
    KvReplayRequest,
    PrefixCaches,
    Roster,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.router import KvState, RequestRouter, block_hashes, target_key
from hpc_dynamo.run import Run
from hpc_dynamo.tasks.node import CODEC
from hpc_dynamo.topology import Shard, Worker, plan
from hpc_dynamo.wire import ControlClient, ControlServer
from tests.integration.agent.test_kv_events import (
    CONFIG,
    HERE,
    READY,
    SOON_S,
    Head,
    agent_of,
    batch,
    fail_job,
    record,
)
from tests.integration.serving.served import MODEL, Served, serving
from tests.support.runs import until

RANKS = 3
PROMPT = list(range(40))  # two blocks of 16 tokens, and a half
HASHES = memoryview(block_hashes(array.array("I", PROMPT).tobytes(), 16)).cast("Q").tolist()


async def complete(head: Head, worker: WorkerReport, rank: int) -> None:
    headers = {"Authorization": f"Bearer {head.token}", "X-data-parallel-rank": str(rank)}
    body = {"model": "m", "prompt": PROMPT, "max_tokens": 1}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.post(f"{worker.url}/v1/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()


async def test_events_of_each_rank_reach_the_router(run: Run) -> None:
    ranked = Topology(aggregated=Pool(workers=1, data_parallel=RANKS))
    state = KvState(Router(block_tokens=16))
    for rank in range(RANKS):
        state.add_worker((0, rank))
    async with agent_of(run, replace(CONFIG, topology=ranked)) as (head, _):
        await head.expect_report(WorkerState.starting)
        worker = await head.expect_report(WorkerState.ready)
        assert worker.caches == PrefixCaches(RANKS)
        for rank in (2, 0):
            await complete(head, worker, rank)
        for dp_rank in worker.caches.dp_ranks:
            await head.send(KvReplayRequest(rank=0, dp_rank=dp_rank, start=0))
        ended = set[int | None]()
        while len(ended) < RANKS:
            message = await head.hear()
            if isinstance(message, KvEvents):
                state.receive_events(target_key(0, message.dp_rank), message.seq, message.payload)
                ended |= {message.dp_rank} if message.seq == -1 else set()
    assert state.overlaps(HASHES[:2]) == {(0, 0): 2, (0, 2): 2}


@pytest.mark.parametrize(
    ("gpus", "ranks", "expected"),
    [
        ((0,), 3, [(0, 1, 2)]),
        ((4, 4), 8, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ((3, 1), 4, [(0, 1, 2), (3,)]),
        ((2, 2, 2, 2), 2, [(0,), (), (1,), ()]),  # replicas over two nodes
        ((8, 8), 4, [(0, 1), (2, 3)]),
    ],
)
def test_rank_is_on_the_shard_of_its_first_gpu(
    gpus: tuple[int, ...], ranks: int, expected: list[tuple[int, ...]]
) -> None:
    shards = tuple(Shard(node, tuple(range(count))) for node, count in enumerate(gpus))
    worker = Worker(0, Role.aggregated, shards)
    assert [shard_ranks(worker, ranks, index) for index in range(len(gpus))] == expected


# Each node pretends to have one GPU, so that a worker of two ranks takes two agents.
TWO_NODES = replace(
    CONFIG,
    cluster=replace(CONFIG.cluster, gpus_per_node=1),
    engine=replace(CONFIG.engine, device=Device.cuda),
    topology=Topology(aggregated=Pool(workers=1, data_parallel=2), nodes=3),
)


async def test_head_accepts_events_of_all_nodes_of_a_worker_only(run: Run) -> None:
    attempt, secrets = run.new_attempt(TWO_NODES, plan(TWO_NODES)), run.secrets()
    server = ControlServer(HERE, secrets.keys, CODEC)
    nodes = tuple(structs.replace(record(attempt), node=node) for node in range(3))
    router = RequestRouter.from_config(TWO_NODES)
    roster = Roster(nodes=nodes, method="", seconds=0)
    members = Membership(attempt, roster, server, {"": router}, fail_job)
    agents = [ControlClient(server.endpoint, secrets.keys, CODEC) for _ in nodes]
    listening = asyncio.create_task(members.listen())
    try:
        for agent, node in zip(agents, nodes, strict=True):
            await agent.send(Hello(node=node))
            await agent.receive(SOON_S)  # the head knows it
        await agents[0].send(structs.replace(READY, caches=PrefixCaches(2)))
        for agent in agents[:2]:
            for dp_rank in range(2):
                request = KvReplayRequest(rank=0, dp_rank=dp_rank, start=0)
                assert await agent.receive(SOON_S) == request
        for agent in (agents[2], agents[1]):
            for seq in (0, REPLAY_END, 2):
                await agent.send(KvEvents(rank=0, dp_rank=1, seq=seq, payload=batch(seq)))
        assert (await agents[1].receive(SOON_S)) == KvReplayRequest(rank=0, dp_rank=1, start=1)
        assert router.kv_state.batches == 1
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        for client in agents:
            client.close()
        server.close()


@pytest.mark.slow
def test_events_of_a_rank_on_another_node_reach_the_router(tmp_path: Path) -> None:
    """Requests that did not pass through the router are known from events only."""
    words = ("topology=aggregated", "topology.aggregated.data_parallel=2")
    pretend = ("engine.device=cuda", "cluster.gpus_per_node=1", "cluster.preflight=false")
    with serving(tmp_path, *words, *pretend) as served:
        assert served.attempt.plan().nodes == 2
        (worker,) = served.workers()["aggregated"]
        for dp_rank in (1, 0):
            prompt = [1000 * dp_rank + token for token in PROMPT]
            _compute(served, worker["url"], prompt, dp_rank)
            until("events", partial(_has_blocks, served, prompt, {dp_rank: 2}))


def _compute(served: Served, url: str, prompt: list[int], dp_rank: int) -> None:
    token = served.attempt.run.secrets().token
    headers = {"Authorization": f"Bearer {token}", "X-data-parallel-rank": str(dp_rank)}
    headers["Content-Type"] = "application/json"
    body = json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": 1})
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=90)) as connection:
        connection.request("POST", "/v1/completions", body, headers)
        assert connection.getresponse().status == 200


def _has_blocks(served: Served, prompt: list[int], expected: dict[int, int]) -> bool:
    """Return True if the router knows these blocks, by rank, and no others of a prompt."""
    why: Any = served.post("/v1/route", {"model": MODEL, "prompt": prompt}).json
    cached = {w["dp_rank"]: w["overlap_blocks"] for w in why["workers"] if w["overlap_blocks"]}
    return cached == expected
