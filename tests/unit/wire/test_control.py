"""The control plane over real sockets: keys, delivery, timeouts."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from hpc_dynamo.errors import WireError
from hpc_dynamo.wire import ControlClient, ControlServer, MessageCodec, new_keys
from hpc_dynamo.wire.connection_limit import StrangerLimits
from hpc_dynamo.wire.control import MAX_FRAME_BYTES, PART_BYTES

SOON_S = 60.0  # timeout of what must happen
NEVER_S = 0.3  # time in which something must not happen
HERE = "127.0.0.1"


class Ping(msgspec.Struct, frozen=True, tag=True):
    text: str


class Pong(msgspec.Struct, frozen=True, tag=True):
    number: int


CODEC: MessageCodec[Ping | Pong] = MessageCodec(Ping | Pong)  # type: ignore[arg-type]  # a union is no type[T]
KEYS = new_keys()

Connect = Callable[..., ControlClient[Ping | Pong]]


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
async def server(closing: ExitStack) -> ControlServer[Ping | Pong]:
    server = ControlServer(HERE, KEYS, CODEC)
    closing.callback(server.close)
    return server


@pytest.fixture
async def connect(closing: ExitStack, server: ControlServer[Ping | Pong]) -> Connect:
    def make(keys: tuple[str, str] = KEYS, endpoint: str = "") -> ControlClient[Ping | Pong]:
        client = ControlClient(endpoint or server.endpoint, keys, CODEC)
        closing.callback(client.close)
        return client

    return make


async def received(
    server: ControlServer[Ping | Pong], timeout_s: float
) -> tuple[bytes, Ping | Pong]:
    async with asyncio.timeout(timeout_s):
        return await server.receive()


async def test_messages_pass_both_ways(
    server: ControlServer[Ping | Pong], connect: Connect
) -> None:
    client = connect()
    await client.send(Ping("hällo"))
    peer, message = await received(server, SOON_S)
    assert message == Ping("hällo")
    assert await server.send(peer, Pong(7))
    assert await client.receive(SOON_S) == Pong(7)


async def test_server_answers_the_client_that_sent_the_message(
    server: ControlServer[Ping | Pong], connect: Connect
) -> None:
    clients = [connect() for _ in range(5)]
    for n, client in enumerate(clients):
        await client.send(Ping(str(n)))
    for _ in clients:
        peer, message = await received(server, SOON_S)
        assert isinstance(message, Ping)
        await server.send(peer, Pong(int(message.text)))
    assert [await c.receive(SOON_S) for c in clients] == [Pong(n) for n in range(5)]


async def test_messages_of_one_client_keep_their_order(
    server: ControlServer[Ping | Pong], connect: Connect
) -> None:
    client = connect()
    for n in range(200):
        await client.send(Pong(n))
    assert [(await received(server, SOON_S))[1] for _ in range(200)] == [
        Pong(n) for n in range(200)
    ]


async def test_message_sent_before_the_server_exists_arrives(closing: ExitStack) -> None:
    """A client reconnects by itself, also to a server that starts later."""
    first = ControlServer(HERE, KEYS, CODEC)
    endpoint = first.endpoint
    first.close()
    client = ControlClient(endpoint, KEYS, CODEC)
    closing.callback(client.close)
    await client.send(Ping("early"))
    context = zmq.asyncio.Context()
    closing.callback(context.term)
    late = context.socket(zmq.ROUTER)
    closing.callback(late.close, linger=0)
    late.curve_server = True
    late.curve_publickey, late.curve_secretkey = (k.encode() for k in KEYS)
    late.bind(endpoint)
    async with asyncio.timeout(SOON_S):
        _, data = await late.recv_multipart()
    assert CODEC.decode(data) == Ping("early")


async def test_client_with_another_key_is_rejected(
    server: ControlServer[Ping | Pong], connect: Connect
) -> None:
    """Knowing the server's public key is not enough: the client's own must be the run's."""
    stranger_public, stranger_private = new_keys()
    context = zmq.asyncio.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.curve_publickey, stranger.curve_secretkey = (
        stranger_public.encode(),
        stranger_private.encode(),
    )
    stranger.curve_serverkey = KEYS[0].encode()
    try:
        stranger.connect(server.endpoint)
        await stranger.send(CODEC.encode(Ping("let me in")))
        with pytest.raises(TimeoutError):
            await received(server, NEVER_S)
    finally:
        stranger.close(linger=0)
        context.term()
    await connect().send(Ping("friend"))
    assert (await received(server, SOON_S))[1] == Ping("friend")


async def test_client_without_key_is_rejected(
    server: ControlServer[Ping | Pong], connect: Connect
) -> None:
    context = zmq.asyncio.Context()
    stranger = context.socket(zmq.DEALER)
    try:
        stranger.connect(server.endpoint)
        await stranger.send(CODEC.encode(Ping("let me in")))
        with pytest.raises(TimeoutError):
            await received(server, NEVER_S)
    finally:
        stranger.close(linger=0)
        context.term()
    await connect().send(Ping("friend"))
    assert (await received(server, SOON_S))[1] == Ping("friend")


async def test_connections_without_key_are_limited(closing: ExitStack) -> None:
    """They took the descriptors of the head, five seconds each."""
    server = ControlServer(HERE, KEYS, CODEC, limits=StrangerLimits(per_address=8, total=100))
    closing.callback(server.close)
    client = ControlClient(server.endpoint, KEYS, CODEC)
    closing.callback(client.close)
    await client.send(Ping("before"))
    assert (await received(server, SOON_S))[1] == Ping("before")
    port = int(server.endpoint.rpartition(":")[2])
    create = socket.create_connection
    strangers = [closing.enter_context(create((HERE, port))) for _ in range(40)]
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SOON_S):
        for stranger in strangers[:32]:
            stranger.setblocking(False)
            with suppress(ConnectionError):
                while await loop.sock_recv(stranger, 100):
                    pass
    assert server.connections.closed >= 32
    assert server.connections.strangers <= 8
    # An older connection with the key stays, and a new one gets through.
    late = ControlClient(server.endpoint, KEYS, CODEC)
    closing.callback(late.close)
    await client.send(Ping("old"))
    assert (await received(server, SOON_S))[1] == Ping("old")
    await late.send(Ping("new"))
    assert (await received(server, SOON_S))[1] == Ping("new")


async def test_connections_that_are_reset_at_once_do_not_stop_the_server(
    server: ControlServer[Ping | Pong], connect: Connect
) -> None:
    """One of them ended the thread that ZMQ's own thread waits for: all agents became silent."""
    client = connect()
    port = int(server.endpoint.rpartition(":")[2])
    reset = struct.pack("ii", 1, 0)
    for _ in range(300):
        with socket.create_connection((HERE, port)) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    for text in ("after", "again"):
        await client.send(Ping(text))
        assert (await received(server, SOON_S))[1] == Ping(text)
    await connect().send(Ping("new"))
    assert (await received(server, SOON_S))[1] == Ping("new")


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def test_descriptor_of_a_closed_connection_may_be_of_anything(
    server: ControlServer[Ping | Pong], closing: ExitStack
) -> None:
    """ZMQ's thread closes connections before this process reads its event; then descriptors are
    reused."""
    sockets = [*socket.socketpair(), socket.socket()]
    numbers = [closing.enter_context(each).fileno() for each in sockets]
    pipe = os.pipe()
    numbers += [*pipe, 1 << 20]
    before = descriptors()
    for number in numbers:
        server.connections._accepted(number)
        server.connections._close(number)
    assert descriptors() == before
    assert server.connections.strangers == 0
    for each in pipe:
        os.close(each)


async def test_receive_raises_after_its_timeout(
    server: ControlServer[Ping | Pong], connect: Connect
) -> None:
    client = connect()
    with pytest.raises(WireError) as silent:
        await client.receive(NEVER_S)
    assert f"no message from {server.endpoint} for " in silent.value.message
    assert "check that the node is up" in silent.value.hint


async def test_send_to_disconnected_client_returns_false(
    server: ControlServer[Ping | Pong], connect: Connect
) -> None:
    client = connect()
    await client.send(Ping("bye"))
    peer, _ = await received(server, SOON_S)
    client.close()
    async with asyncio.timeout(SOON_S):
        while await server.send(peer, Pong(1)):  # noqa: ASYNC110  # ZMQ has no event for this
            await asyncio.sleep(0.01)


async def test_send_to_unknown_client_returns_false(server: ControlServer[Ping | Pong]) -> None:
    assert await server.send(b"nobody", Pong(1)) is False


def test_message_of_another_version_raises_wire_error() -> None:
    class Quux(msgspec.Struct, tag=True):
        x: int

    for data in (msgspec.msgpack.encode(Quux(1)), b"", b"\xff", b"\x00" * 9):
        with pytest.raises(WireError, match="cannot be decoded") as wrong:
            CODEC.decode(data)
        assert "same version" in wrong.value.hint


async def test_servers_use_different_ports(closing: ExitStack) -> None:
    servers = [ControlServer(HERE, KEYS, CODEC) for _ in range(5)]
    for server in servers:
        closing.callback(server.close)
    assert len({server.endpoint for server in servers}) == 5


def test_new_keys_differ_each_time() -> None:
    assert len({key for _ in range(5) for key in new_keys()}) == 10


async def test_invalid_message_is_ignored_by_both_ends(
    server: ControlServer[Ping | Pong], connect: Connect
) -> None:
    client, raw = connect(), zmq.asyncio.Context.instance().socket(zmq.DEALER)
    raw.curve_publickey, raw.curve_secretkey = (key.encode() for key in KEYS)
    raw.curve_serverkey = KEYS[0].encode()
    raw.connect(server.endpoint)
    with raw:
        for frames in ([b""], [b"\xff\xff"], [b"a", b"b", b"c"], [msgspec.msgpack.encode(1)]):
            await raw.send_multipart(frames)
        await raw.send(CODEC.encode(Ping("after")))
        peer, message = await received(server, SOON_S)
    assert message == Ping("after")
    await client.send(Ping("hello"))
    peer, _ = await received(server, SOON_S)
    await server._socket.send_multipart([peer, b"\xff"])
    await server.send(peer, Pong(7))
    assert await client.receive(SOON_S) == Pong(7)


async def test_long_messages_pass_both_ways(
    server: ControlServer[Ping | Pong], connect: Connect
) -> None:
    client = connect()
    for size in (0, PART_BYTES, MAX_FRAME_BYTES, 10 * MAX_FRAME_BYTES):
        await client.send(Ping("x" * size))
        peer, message = await received(server, SOON_S)
        assert message == Ping("x" * size)
        assert await server.send(peer, message)
        assert await client.receive(SOON_S) == message


@pytest.mark.parametrize("size", [1 << 20, 1 << 30])
async def test_large_frame_of_a_stranger_closes_its_connection(
    server: ControlServer[Ping | Pong], connect: Connect, size: int
) -> None:
    """Frames in place of the handshake, also many of 8 MB, filled the memory of the head."""
    host, _, port = server.endpoint.removeprefix("tcp://").partition(":")
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(host, int(port))
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
        command = b"\x06" + size.to_bytes(8, "big")
        writer.write(greeting)
        await reader.readexactly(64)
        writer.write(command)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        client = connect()
        await client.send(Ping("still there"))
        assert (await server.receive())[1] == Ping("still there")
