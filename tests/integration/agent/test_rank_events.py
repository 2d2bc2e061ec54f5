"""KV events of a worker's data-parallel ranks, from the engine through the agent to the router."""

import array
from dataclasses import replace

import aiohttp

from hpc_dynamo.config import Pool, Router, Topology
from hpc_dynamo.messages import KvEvents, KvReplayRequest, PrefixCaches, WorkerReport, WorkerState
from hpc_dynamo.router import KvState, block_hashes, target_key
from hpc_dynamo.run import Run
from tests.integration.agent.test_kv_events import CONFIG, Head, agent_of

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
