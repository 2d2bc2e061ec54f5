"""NIXL's end on one node: `python -m hpc_dynamo.doctor.link NAME [--gpu]`, a process of its own.

It may hang or crash in a driver, and it may need the engine's interpreter. On standard output,
among what NIXL and UCX print: lines that begin with MARK, JSON behind it. First what peers must
know, then an answer to each line of standard input: a number, which the answer has again, and a
list of a peer's metadata.
Two agents: large blocks for bandwidth, small ones for latency.
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
REPEATS, LEAST, BUDGET_S, PULL_S = (8, 40), 3, 2.0, 5.0
GROWTH = 8  # blocks of a pull after a quick one, times those before
AWAKE_S, DOZE_S = 0.05, 0.001  # notices are asked for all the time while a peer measures


async def main(name: str, gpu: bool) -> None:
    sizes = [block * count for block, count in zip(BLOCK_BYTES, BLOCKS, strict=True)]
    pools: list[Any] = [allocate_gpu_pool(size) for size in sizes] if gpu else [None, None]
    memory = "host" if pools[0] is None else "GPU"
    filled = [pool if pool is not None else _host(n) for pool, n in zip(pools, sizes, strict=True)]
    agents = [
        KvAgent(f"{name}-{block}", pool, block, first_wait_s=0)
        for pool, block in zip(filled, BLOCK_BYTES, strict=True)
    ]
    _say(memory=memory, metadata=[agent.metadata().hex() for agent in agents])
    async with asyncio.TaskGroup() as group:
        serving = [group.create_task(_serve(agent)) for agent in agents]
        while line := await asyncio.to_thread(sys.stdin.readline):
            number, metadata = json.loads(line)
            said = await _measured(agents, [bytes.fromhex(text) for text in metadata])
            _say(number=number, **said)
        for task in serving:
            task.cancel()


def _host(size: int) -> mmap.mmap:
    pool = mmap.mmap(-1, size)
    for at in range(0, size, mmap.PAGESIZE):  # pages that are there already
        pool[at] = 1
    return pool


async def _serve(agent: KvAgent) -> None:
    heard_at = 0.0
    while True:
        if await agent.get_notifications():
            heard_at = time.monotonic()
        await asyncio.sleep(0 if time.monotonic() - heard_at < AWAKE_S else DOZE_S)


async def _measured(agents: list[KvAgent], metadata: list[bytes]) -> dict[str, Any]:
    ends = zip(agents, metadata, (BLOCKS[0], 1), REPEATS, strict=True)
    try:
        large, small = [await _best(*end) for end in ends]
    except HpcDynamoError as e:
        return {"error": e.message}
    return {"gb_s": _rate(large) / 1e9, "latency_us": small.seconds * 1e6}


async def _best(agent: KvAgent, metadata: bytes, count: int, repeats: int) -> KvTransfer:
    """The quickest pull, of `repeats` or of as many as there is time for.

    They grow as the link allows: a slow one is to be measured, not to be taken for dead. One that
    was held up, by a busy machine or since it connects, is none to judge by: a few come after it.
    """
    peer, blocks, pulls = await agent.add_peer(metadata), list(range(count)), list[KvTransfer]()
    began, tried, full = time.monotonic(), 1, 0
    while full < repeats and (len(pulls) < LEAST or time.monotonic() - began < BUDGET_S):
        some = blocks[:tried]
        done = await agent.pull(peer, some, some, notification=b".", timeout_s=PULL_S)
        pulls.append(done)
        full += tried == count
        if done.seconds * GROWTH < BUDGET_S:
            tried = min(tried * GROWTH, count)
    return max(pulls, key=_rate)


def _rate(done: KvTransfer) -> float:
    return done.size_bytes / done.seconds


def _say(**record: object) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(record)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    atexit.register(os._exit, 1)  # UCX may crash in its exit handlers; runs after a traceback
    try:
        asyncio.run(main(sys.argv[1], "--gpu" in sys.argv))
    except HpcDynamoError as error:
        _say(error=str(error))
        os._exit(1)
    os._exit(0)
