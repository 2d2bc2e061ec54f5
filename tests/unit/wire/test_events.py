"""Publishers and subscribers of KV events over ipc sockets; plain ZMQ stands for other versions."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zmq
import zmq.asyncio

from hpc_dynamo.errors import WireError
from hpc_dynamo.wire import KvEventPublisher, KvEventSubscriber

SOON_S = 60.0  # for what must happen
NEVER_S = 0.3  # for what must not


@pytest.fixture
def folder() -> Iterator[Path]:
    """Folder with a short path, since ipc paths are limited."""
    with TemporaryDirectory() as path:
        yield Path(path)


@contextmanager
def publisher(folder: Path, buffer_steps: int = 100) -> Iterator[KvEventPublisher]:
    live, replay = f"ipc://{folder}/live", f"ipc://{folder}/replay"
    made = KvEventPublisher(live, replay, topic="kv", buffer_steps=buffer_steps)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def subscriber(folder: Path) -> Iterator[KvEventSubscriber]:
    made = KvEventSubscriber(f"ipc://{folder}/live", f"ipc://{folder}/replay")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
async def pair(folder: Path) -> AsyncIterator[tuple[KvEventPublisher, KvEventSubscriber]]:
    """Connected publisher, with a buffer of ten steps, and subscriber. Replays are served."""
    async with AsyncExitStack() as stack:
        follower = stack.enter_context(subscriber(folder))
        engine = stack.enter_context(publisher(folder, buffer_steps=10))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        serving = group.create_task(engine.serve_replays())
        stack.callback(serving.cancel)
        await connect(engine, follower)
        yield engine, follower


async def connect(engine: KvEventPublisher, follower: KvEventSubscriber) -> None:
    """Publish payload 0 until it is received, since PUB does not report subscribers; then drain."""
    wait_until_received = asyncio.create_task(follower.receive())
    async with asyncio.timeout(SOON_S):
        said = 0
        while not wait_until_received.done():
            await engine.publish(b"hello")
            said += 1
            await asyncio.wait([wait_until_received], timeout=0.02)
        last = (await wait_until_received)[0]
        while last < said - 1:
            last = (await follower.receive())[0]


async def heard(follower: KvEventSubscriber) -> tuple[int, bytes]:
    async with asyncio.timeout(SOON_S):
        return await follower.receive()


async def replayed(
    follower: KvEventSubscriber, start: int, timeout_s: float = SOON_S
) -> list[tuple[int, bytes]]:
    async with aclosing(follower.replay(start, timeout_s)) as batches:
        return [each async for each in batches]


async def next_number(engine: KvEventPublisher, follower: KvEventSubscriber) -> int:
    """Return the next number of the publisher."""
    await engine.publish(b"last")
    return (await heard(follower))[0] + 1


async def test_batches_arrive_in_order_with_rising_numbers(
    pair: tuple[KvEventPublisher, KvEventSubscriber],
) -> None:
    engine, follower = pair
    first = await next_number(engine, follower)
    for index in range(50):
        await engine.publish(b"%d" % index)
    got = [await heard(follower) for _ in range(50)]
    assert got == [(first + index, b"%d" % index) for index in range(50)]


async def test_lost_batch_shows_as_a_gap_and_is_replayed(
    pair: tuple[KvEventPublisher, KvEventSubscriber],
) -> None:
    engine, follower = pair
    first = await next_number(engine, follower)
    await engine.publish(b"one", drop=True)
    await engine.publish(b"two", drop=True)
    await engine.publish(b"three")
    assert await heard(follower) == (first + 2, b"three")
    assert await replayed(follower, first) == [
        (first, b"one"),
        (first + 1, b"two"),
        (first + 2, b"three"),
    ]
    assert await replayed(follower, first + 3) == []
    await engine.publish(b"four")
    assert await heard(follower) == (first + 3, b"four"), "a replay does not disturb what follows"


async def test_replay_starts_at_the_oldest_buffered_batch(
    pair: tuple[KvEventPublisher, KvEventSubscriber],
) -> None:
    engine, follower = pair
    first = await next_number(engine, follower)
    for index in range(25):
        await engine.publish(b"%d" % index, drop=True)
    assert await replayed(follower, first) == [(first + n, b"%d" % n) for n in range(15, 25)]
    assert len(await replayed(follower, 0)) == 10


async def test_long_replay_is_complete_and_does_not_block_the_engine(folder: Path) -> None:
    with subscriber(folder) as follower, publisher(folder, buffer_steps=5000) as engine:
        for index in range(5000):
            await engine.publish(b"%d" % index)
        turns = 0

        async def compute() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.serve_replays()), group.create_task(compute())]
            got = await replayed(follower, 0, 4 * SOON_S)
            for task in tasks:
                task.cancel()
    assert got == [(index, b"%d" % index) for index in range(5000)]
    assert turns > 5000


async def test_replay_ends_at_the_deadline_without_an_answer(folder: Path) -> None:
    with subscriber(folder) as follower:
        async with asyncio.timeout(SOON_S):
            assert await replayed(follower, 0, NEVER_S) == [], "nobody is there"
        with publisher(folder) as engine:  # there, but it serves no replays
            await engine.publish(b"x")
            async with asyncio.timeout(SOON_S):
                assert await replayed(follower, 0, NEVER_S) == []


async def test_late_answer_does_not_reach_the_next_replay(folder: Path) -> None:
    with subscriber(folder) as follower, publisher(folder) as engine:
        await engine.publish(b"zero")
        await engine.publish(b"one")
        assert await replayed(follower, 0, NEVER_S) == []
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(engine.serve_replays())
            assert await replayed(follower, 1) == [(1, b"one")]
            serving.cancel()


async def test_replay_without_topic_is_decoded(folder: Path) -> None:
    """SGLang and earlier versions of vLLM send replays without a topic."""
    context = zmq.asyncio.Context()
    with context.socket(zmq.ROUTER) as router, subscriber(folder) as follower:
        router.bind(f"ipc://{folder}/replay")

        async def serve() -> None:
            peer, empty, start = await router.recv_multipart()
            assert (empty, start) == (b"", (3).to_bytes(8, "big"))
            await router.send_multipart([peer, b"", (3).to_bytes(8, "big"), b"three"])
            end = (-1).to_bytes(8, "big", signed=True)
            await router.send_multipart([peer, b"", end, b""])

        async with asyncio.TaskGroup() as group:
            group.create_task(serve())
            assert await replayed(follower, 3) == [(3, b"three")]
    context.term()


@pytest.mark.parametrize("frames", [[b"alone"], [b"topic", b"short", b"payload"]])
async def test_frames_of_another_protocol_raise_wire_error(
    folder: Path, frames: list[bytes]
) -> None:
    context = zmq.asyncio.Context()
    with context.socket(zmq.PUB) as other, subscriber(folder) as follower:
        other.bind(f"ipc://{folder}/live")

        async def say() -> None:
            while True:
                await other.send_multipart(frames)
                await asyncio.sleep(0.02)  # PUB has no event for new subscribers

        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(say())
            with pytest.raises(WireError, match="in frames of") as wrong:
                await heard(follower)
            publishing.cancel()
        assert "8 bytes" in wrong.value.hint
    context.term()


@pytest.mark.parametrize("name", ["nowhere/live", "x" * 200])
async def test_invalid_endpoint_raises_wire_error(folder: Path, name: str) -> None:
    with pytest.raises(WireError, match="cannot be published") as wrong:
        KvEventPublisher(f"ipc://{folder}/{name}", None, topic="", buffer_steps=1)
    assert "107 bytes" in wrong.value.hint
