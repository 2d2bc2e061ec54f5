"""Measurement of NIXL links: `python -m hpc_dynamo.doctor.link NAME [--gpu]`.

This is a process of its own, because it may hang or crash in a driver and may need the engine's
interpreter. Its standard output has lines that begin with MARK, followed by JSON, among the output
of NIXL and UCX. The first record has the metadata for peers. Each line of standard input is a
number and a peer's metadata; its answer repeats the number. One agent with large blocks measures
bandwidth, one with small blocks measures latency.
"""

import asyncio
import atexit
import json
import mmap
import os
import sys
import time
from typing import Any

from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.kv.agent import KvAgent, KvTransfer
from hpc_dynamo.kv.memory import allocate_gpu_pool

MARK = "hpc-dynamo-link "
BLOCK_BYTES, BLOCKS = (256 << 10, 4 << 10), (128, 4)
REPEATS, MIN_PULLS, BUDGET_S, PULL_TIMEOUT_S = (8, 40), 3, 2.0, 5.0
GROWTH = 8  # factor between the blocks of two pulls
# Without pause while a peer measures, else at this interval.
BUSY_POLL_S, IDLE_POLL_S = 0.05, 0.001


async def main(name: str, gpu: bool) -> None:
    """Serve peers and measure links until standard input ends."""
    sizes = [block * count for block, count in zip(BLOCK_BYTES, BLOCKS, strict=True)]
    pools: list[Any] = [allocate_gpu_pool(size) for size in sizes] if gpu else [None, None]
    memory = "host" if pools[0] is None else "GPU"
    filled = [
        pool if pool is not None else _host_pool(n) for pool, n in zip(pools, sizes, strict=True)
    ]
    agents = [
        KvAgent(f"{name}-{block}", pool, block, first_wait_s=0)
        for pool, block in zip(filled, BLOCK_BYTES, strict=True)
    ]
    _write_record(memory=memory, metadata=[agent.metadata().hex() for agent in agents])
    async with asyncio.TaskGroup() as group:
        serving = [group.create_task(_poll_notifications(agent)) for agent in agents]
        while line := await asyncio.to_thread(sys.stdin.readline):
            number, metadata = json.loads(line)
            result = await _measure(agents, [bytes.fromhex(text) for text in metadata])
            _write_record(number=number, **result)
        for task in serving:
            task.cancel()


def _host_pool(size: int) -> mmap.mmap:
    pool = mmap.mmap(-1, size)
    for at in range(0, size, mmap.PAGESIZE):  # allocate all pages
        pool[at] = 1
    return pool


async def _poll_notifications(agent: KvAgent) -> None:
    notified_at = 0.0
    while True:
        if await agent.get_notifications():
            notified_at = time.monotonic()
        await asyncio.sleep(0 if time.monotonic() - notified_at < BUSY_POLL_S else IDLE_POLL_S)


async def _measure(agents: list[KvAgent], metadata: list[bytes]) -> dict[str, Any]:
    ends = zip(agents, metadata, (BLOCKS[0], 1), REPEATS, strict=True)
    try:
        large, small = [await _best(*end) for end in ends]
    except HpcDynamoError as e:
        return {"error": e.message}
    return {"gb_s": _rate(large) / 1e9, "latency_us": small.seconds * 1e6}


async def _best(agent: KvAgent, metadata: bytes, count: int, repeats: int) -> KvTransfer:
    """Return the fastest of `repeats` pulls, or of as many as BUDGET_S allows.

    Pulls grow up to `count` blocks, so that a slow link does not time out. At least MIN_PULLS are
    made, because one pull may be delayed by a busy machine or by the connection's set-up.
    """
    peer, pulls = await agent.add_peer(metadata), list[KvTransfer]()
    began, size, full = time.monotonic(), 1, 0
    while full < repeats and (len(pulls) < MIN_PULLS or time.monotonic() - began < BUDGET_S):
        blocks = range(size)
        done = await agent.pull(peer, blocks, blocks, notification=b".", timeout_s=PULL_TIMEOUT_S)
        pulls.append(done)
        full += size == count
        if done.seconds * GROWTH < BUDGET_S:
            size = min(size * GROWTH, count)
    return max(pulls, key=_rate)


def _rate(done: KvTransfer) -> float:
    return done.size_bytes / done.seconds


def _write_record(**record: object) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(record)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    atexit.register(os._exit, 1)  # avoid crashes in the exit handlers of UCX
    try:
        asyncio.run(main(sys.argv[1], "--gpu" in sys.argv))
    except HpcDynamoError as error:
        _write_record(error=str(error))
        os._exit(1)
    os._exit(0)
