"""NIXL between processes, in host memory.

Each side runs in a child process. The UCX of nixl-cu12 crashes in its exit handlers, so a process
that has used it must end with os._exit.
"""

import asyncio
import atexit
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest

from hpc_dynamo.errors import KvTransferError, MissingDependency
from hpc_dynamo.kv.agent import KvAgent
from tests.support.runs import HANG_S

BLOCKS = 64
SOON_S = 60.0
Scenario = Callable[[int], Coroutine[None, None, None]]


def filled(block_bytes: int) -> mmap.mmap:
    pool = mmap.mmap(-1, BLOCKS * block_bytes)
    for i in range(BLOCKS):
        pool[i * block_bytes : (i + 1) * block_bytes] = bytes([i + 1]) * block_bytes
    return pool


async def producer(block_bytes: int) -> None:
    """Print the metadata, then each notification, until killed."""
    agent = KvAgent(f"producer-{os.getpid()}", filled(block_bytes), block_bytes)
    print("metadata", agent.metadata().hex(), flush=True)
    while True:
        for notice in await agent.get_notifications():
            print("heard", notice.decode(), flush=True)
        await asyncio.sleep(0.001)


class Producer:
    """Process of the other side."""

    def __init__(self, process: "asyncio.subprocess.Process") -> None:
        self.process = process
        self.metadata = b""

    async def says(self, word: str) -> str:
        assert self.process.stdout
        async with asyncio.timeout(SOON_S):
            async for line in self.process.stdout:  # NIXL also logs there
                if line.startswith(word.encode()):
                    return line.decode().split()[1]
        raise AssertionError(f"the producer ended before it said {word}")


@asynccontextmanager
async def peer(block_bytes: int) -> AsyncIterator[Producer]:
    argv = [sys.executable, __file__, "producer", str(block_bytes)]
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, limit=1 << 20)
    made = Producer(process)
    try:
        made.metadata = bytes.fromhex(await made.says("metadata"))
        yield made
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def pulled(block_bytes: int) -> None:
    pool = mmap.mmap(-1, BLOCKS * block_bytes)
    agent = KvAgent("consumer", pool, block_bytes)
    async with peer(block_bytes) as other:
        name = await agent.add_peer(other.metadata)
        assert agent.has_peer(name)
        for turn in range(3):
            remote, local = [5, 3, 60, 4], [7 + turn, 1, 0, 63]
            done = await agent.pull(
                name, remote, local, notification=b"took-%d" % turn, timeout_s=SOON_S
            )
            assert done.size_bytes == 4 * block_bytes
            for theirs, ours in zip(remote, local, strict=True):
                block = pool[ours * block_bytes : (ours + 1) * block_bytes]
                assert block == bytes([theirs + 1]) * block_bytes
            assert await other.says("heard") == f"took-{turn}"
        assert pool[2 * block_bytes] == 0
        await agent.notify(name, b"hello")
        assert await other.says("heard") == "hello"
    await agent.close()


async def silent(block_bytes: int) -> None:
    """The deadline holds for a stopped peer, and its late bytes are awaited."""
    pool = mmap.mmap(-1, BLOCKS * block_bytes)
    agent = KvAgent("consumer", pool, block_bytes)
    async with peer(block_bytes) as other:
        name = await agent.add_peer(other.metadata)
        await agent.pull(name, [0], [0], notification=b"", timeout_s=SOON_S)
        other.process.send_signal(signal.SIGSTOP)
        blocks, began = list(range(BLOCKS)), time.monotonic()
        await fails(agent.pull(name, blocks, blocks, notification=b"", timeout_s=0.5), name)
        assert 0.5 <= time.monotonic() - began < SOON_S
        await asyncio.wait_for(agent.wait_settled([]), SOON_S)
        settled = asyncio.create_task(agent.wait_settled([3]))
        await asyncio.sleep(0.1)
        assert not settled.done()
        other.process.send_signal(signal.SIGCONT)
        await asyncio.wait_for(settled, SOON_S)
        pool[:] = bytes(len(pool))
        await agent.pull(name, [9], [9], notification=b"", timeout_s=SOON_S)
        assert pool[:block_bytes] == bytes(block_bytes), "written after it had settled"


async def cancelled(block_bytes: int) -> None:
    agent = KvAgent("consumer", mmap.mmap(-1, BLOCKS * block_bytes), block_bytes)
    async with peer(block_bytes) as other:
        name = await agent.add_peer(other.metadata)
        await agent.pull(name, [0], [0], notification=b"", timeout_s=SOON_S)
        other.process.send_signal(signal.SIGSTOP)
        pull = asyncio.create_task(
            agent.pull(name, [1, 2], [1, 2], notification=b"", timeout_s=SOON_S)
        )
        await asyncio.sleep(0.1)
        pull.cancel()
        await asyncio.wait([pull])
        assert pull.cancelled()
        settled = asyncio.create_task(agent.wait_settled([1, 2]))
        other.process.kill()  # its death also ends the transfer
        await asyncio.wait_for(settled, SOON_S)


async def dead(block_bytes: int) -> None:
    agent = KvAgent("consumer", mmap.mmap(-1, BLOCKS * block_bytes), block_bytes)
    async with peer(block_bytes) as other, peer(block_bytes) as unmet:
        name, never = [await agent.add_peer(each.metadata) for each in (other, unmet)]
        await agent.pull(name, [0], [0], notification=b"", timeout_s=SOON_S)
        for each in (other, unmet):
            each.process.kill()
            await each.process.wait()
        for gone in (name, never):
            await fails(agent.pull(gone, [1], [1], notification=b"", timeout_s=5), gone)
            await asyncio.wait_for(agent.wait_settled([1]), SOON_S)
        assert not agent.has_peer(name)


async def misused(block_bytes: int) -> None:
    agent = KvAgent("consumer", mmap.mmap(-1, BLOCKS * block_bytes), block_bytes)
    await fails(
        agent.pull("nobody", [0], [0], notification=b"", timeout_s=1), "nobody is not known"
    )
    await fails(agent.add_peer(b"nonsense"), "unreadable metadata")
    async with peer(2 * block_bytes) as other:
        await fails(agent.add_peer(other.metadata), f"has {2 * block_bytes}-byte blocks")
    async with peer(block_bytes) as other:
        name = await agent.add_peer(other.metadata)
        await fails(agent.pull(name, [BLOCKS], [0], notification=b"", timeout_s=1), "outside 0..63")
        await fails(agent.pull(name, [0], [-1], notification=b"", timeout_s=1), "outside 0..63")
        await fails(agent.pull(name, [0, 1], [0], notification=b"", timeout_s=1), "2 blocks")


async def fails(call: Coroutine[None, None, object], text: str) -> None:
    with pytest.raises(KvTransferError, match=re.escape(text)):
        await call


SCENARIOS: dict[str, Scenario] = {
    each.__name__: each for each in (producer, pulled, silent, cancelled, dead, misused)
}


# Shared memory of a stopped process can still be read, so it is not silent.
TCP, SHARED, SMALL, LARGE = "tcp", "tcp,self,sm", 4096, 256 * 1024
CASES = [
    *(("pulled", size, by) for size in (SMALL, LARGE) for by in (TCP, SHARED)),
    *(("silent", size, TCP) for size in (SMALL, LARGE)),
    *(("cancelled", size, TCP) for size in (SMALL, LARGE)),
    *(("dead", SMALL, by) for by in (TCP, SHARED)),
    ("misused", SMALL, TCP),
]


@pytest.mark.parametrize(("scenario", "block_bytes", "transports"), CASES)
def test_kv_agent_scenario(scenario: str, block_bytes: int, transports: str) -> None:
    argv = [sys.executable, __file__, scenario, str(block_bytes)]
    env = os.environ | {"UCX_TLS": transports}
    done = subprocess.run(
        argv, env=env, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr


def test_missing_nixl_names_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for wheel in ("nixl_cu12", "nixl_cu13", "nixl"):
        monkeypatch.setitem(sys.modules, wheel, None)
    with pytest.raises(MissingDependency, match="pip install --no-deps nixl-cu12"):
        KvAgent("nobody", bytearray(64), 32)


if __name__ == "__main__":
    atexit.register(os._exit, 1)  # runs after a traceback is printed
    asyncio.run(SCENARIOS[sys.argv[1]](int(sys.argv[2])))
    os._exit(0)
