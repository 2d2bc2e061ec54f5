"""Publishers and followers of KV events over real ipc sockets; plain ZMQ plays other versions."""

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

SOON_S = 5.0  # for what must happen
NEVER_S = 0.3  # for what must not


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: an ipc path has little room."""
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
    """Both ends of ten steps' buffer, connected; the publisher serves replays."""
    async with AsyncExitStack() as stack:
        follower = stack.enter_context(subscriber(folder))
        engine = stack.enter_context(publisher(folder, buffer_steps=10))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        serving = group.create_task(engine.serve_replays())
        stack.callback(serving.cancel)
        await connect(engine, follower)
        yield engine, follower


async def connect(engine: KvEventPublisher, follower: KvEventSubscriber) -> None:
    """PUB tells nobody who is there, so payload 0 is said until it is heard; then all is read."""
    hears = asyncio.create_task(follower.receive())
    async with asyncio.timeout(SOON_S):
        said = 0
        while not hears.done():
            await engine.publish(b"hello")
            said += 1
            await asyncio.wait([hears], timeout=0.02)
        last = (await hears)[0]
        while last < said - 1:
            last = (await follower.receive())[0]


async def heard(follower: KvEventSubscriber) -> tuple[int, bytes]:
    async with asyncio.timeout(SOON_S):
        return await follower.receive()


async def replayed(
    follower: KvEventSubscriber, start: int, timeout_s: float = SOON_S
) -> list[tuple[int, bytes]]:
    async with aclosing(follower.replay(start, timeout_s)) as all_of_it:
        return [each async for each in all_of_it]


async def next_number(engine: KvEventPublisher, follower: KvEventSubscriber) -> int:
    """What the publisher will count next."""
    await engine.publish(b"last")
    return (await heard(follower))[0] + 1


async def test_published_in_order_with_rising_numbers(
    pair: tuple[KvEventPublisher, KvEventSubscriber],
) -> None:
    engine, follower = pair
    first = await next_number(engine, follower)
    for i in range(50):
        await engine.publish(b"%d" % i)
    got = [await heard(follower) for _ in range(50)]
    assert got == [(first + i, b"%d" % i) for i in range(50)]


async def test_what_was_lost_shows_as_a_gap_and_is_replayed(
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


async def test_a_replay_begins_where_the_buffer_does(
    pair: tuple[KvEventPublisher, KvEventSubscriber],
) -> None:
    engine, follower = pair
    first = await next_number(engine, follower)
    for i in range(25):
        await engine.publish(b"%d" % i, drop=True)
    assert await replayed(follower, first) == [(first + i, b"%d" % i) for i in range(15, 25)]
    assert len(await replayed(follower, 0)) == 10


async def test_a_long_replay_is_whole_and_lets_the_engine_go_on(folder: Path) -> None:
    with subscriber(folder) as follower, publisher(folder, buffer_steps=5000) as engine:
        for i in range(5000):
            await engine.publish(b"%d" % i)
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
    assert got == [(i, b"%d" % i) for i in range(5000)]
    assert turns > 5000


async def test_an_engine_that_does_not_answer_ends_a_replay_at_the_deadline(folder: Path) -> None:
    with subscriber(folder) as follower:
        async with asyncio.timeout(SOON_S):
            assert await replayed(follower, 0, NEVER_S) == [], "nobody is there"
        with publisher(folder) as engine:  # there, but it serves no replays
            await engine.publish(b"x")
            async with asyncio.timeout(SOON_S):
                assert await replayed(follower, 0, NEVER_S) == []


async def test_no_late_answer_comes_into_the_next_replay(folder: Path) -> None:
    with subscriber(folder) as follower, publisher(folder) as engine:
        await engine.publish(b"zero")
        await engine.publish(b"one")
        assert await replayed(follower, 0, NEVER_S) == []
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(engine.serve_replays())
            assert await replayed(follower, 1) == [(1, b"one")]
            serving.cancel()


async def test_frames_without_a_topic_are_understood(folder: Path) -> None:
    """SGLang and earlier versions of vLLM replay so."""
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
async def test_another_protocol_is_an_error_of_ours(folder: Path, frames: list[bytes]) -> None:
    context = zmq.asyncio.Context()
    with context.socket(zmq.PUB) as other, subscriber(folder) as follower:
        other.bind(f"ipc://{folder}/live")

        async def say() -> None:
            while True:
                await other.send_multipart(frames)
                await asyncio.sleep(0.02)  # PUB does not tell when somebody is there

        async with asyncio.TaskGroup() as group:
            saying = group.create_task(say())
            with pytest.raises(WireError, match="in frames of") as wrong:
                await heard(follower)
            saying.cancel()
        assert "8 bytes" in wrong.value.hint
    context.term()


@pytest.mark.parametrize("name", ["nowhere/live", "x" * 200])
async def test_a_path_that_cannot_be_is_told(folder: Path, name: str) -> None:
    with pytest.raises(WireError, match="cannot be published") as wrong:
        KvEventPublisher(f"ipc://{folder}/{name}", None, topic="", buffer_steps=1)
    assert "107 bytes" in wrong.value.hint
