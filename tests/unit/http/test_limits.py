"""Clients without a key, or with endless headers and bodies, do not affect others."""

import asyncio
import contextlib
import gc
import socket
import ssl
import sys
import time
import tracemalloc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hpc_dynamo.http import HttpClient, HttpLimits, HttpRequest, HttpServer, ResponseWriter
from hpc_dynamo.http.connection_table import MAX_ANONYMOUS, ConnectionTable
from hpc_dynamo.http.listener import HANDSHAKE_S, Opening
from tests.integration.serving.served import certified
from tests.unit.http.test_http import HOST, echo, post, raw, status

SOON_S = 60.0
KEY = b"Authorization: Bearer key\r\n"
HEAD = b"POST /x HTTP/1.1\r\nHost: h\r\n"


async def secured(request: HttpRequest, reply: ResponseWriter) -> None:
    reply.send(200 if has_key(request.headers) else 401, request.body)


def has_key(headers: dict[str, str]) -> bool:
    return headers.get("authorization") == "Bearer key"


@contextlib.asynccontextmanager
async def serving(**limits: float) -> AsyncIterator[tuple[HttpServer, int]]:
    own = HttpLimits(**limits)  # type: ignore[arg-type]  # fields of two types
    async with (
        asyncio.timeout(SOON_S),
        HttpServer(secured, limits=own, has_key=has_key) as server,
    ):
        yield server, await server.listen(HOST, 0)


async def answered(port: int) -> int:
    async with HttpClient([(b"authorization", b"Bearer key")]) as client:
        return await status(client, f"http://{HOST}:{port}", b"body")


ENDLESS = {
    "value": HEAD + b"X: ",
    "name": HEAD,
    "target": b"GET /",
    "method": b"",
    "trailer": HEAD + KEY + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX: ",
    "chunk extension": HEAD + KEY + b"Transfer-Encoding: chunked\r\n\r\n2;",
}


@pytest.mark.parametrize("start", ENDLESS.values(), ids=ENDLESS.keys())
async def test_endless_head_is_rejected(start: bytes) -> None:
    """The parser collected one value of 100 MiB for 28 s; no other request was answered."""
    async with serving() as (server, port):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(start)
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                writer.write(b"a" * 65536)
                await writer.drain()
                if server.rejections:
                    break
        assert (await reader.read(12))[9:] in (b"431", b"400")
        writer.close()
        assert await answered(port) == 200


async def test_key_is_checked_before_the_body() -> None:
    async with serving() as (_, port):
        for framing in (b"Content-Length: 30000000", b"Transfer-Encoding: chunked"):
            answer = await raw(port, HEAD + framing + b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" in answer
        answer = await raw(port, HEAD + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("header", [b"", KEY + b"Expect: 100-continue\r\n"])
async def test_rejected_head_gets_one_response(
    header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler answered it as well, after the end of the output."""
    async with serving() as (_, port):
        twice = await raw(port, HEAD + b"Host: h\r\nContent-Length: 2\r\n" + header + b"\r\nhi")
    assert twice.startswith(b"HTTP/1.1 400 ")
    assert twice.count(b"HTTP/1.1") == 1
    assert "defect" not in caplog.text


async def test_bodies_without_a_key_take_no_memory_of_others() -> None:
    """Sixteen incomplete bodies of 32 MiB locked out all others for 60 s."""
    async with serving(buffered_bytes=1000) as (_, port), contextlib.AsyncExitStack() as open_:
        for _ in range(16):
            _, writer = await asyncio.open_connection(HOST, port)
            open_.callback(writer.close)
            writer.write(HEAD + b"Content-Length: 900\r\n\r\n" + b"a" * 899)
            await writer.drain()
        assert await answered(port) == 200


async def test_chunks_of_one_byte_are_joined() -> None:
    """Each piece was kept as an object: 114 MiB of payload took 4.1 GiB."""
    body = b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n"
    head = HEAD + KEY + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving() as (_, port):
        assert (await raw(port, head + body)).endswith(b"\r\n\r\n" + b"a" * 50_000)


HELLO = HEAD + KEY + b"Content-Length: 2\r\n\r\nhi"


class Crowd(contextlib.AsyncExitStack):
    """Connections that stay open until the end of the block."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def enter(
        self, count: int, sent: bytes = b""
    ) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open connections and send the same bytes on each."""
        links = [await asyncio.open_connection(HOST, self._port) for _ in range(count)]
        for _, writer in links:
            self.push_async_callback(close, writer)
            writer.write(sent)
        return links


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_connections_without_a_key_have_their_own_limit() -> None:
    """Idle connections without a key took all descriptors: every other request failed."""
    async with serving(connections=40) as (server, port), Crowd(port) as crowd:
        keyed = await crowd.enter(5, HELLO)
        for reader, _ in keyed:
            await reader.readuntil(b"hi")
        while server.rejections.get("connections", 0) < 20:
            await crowd.enter(5)
            await asyncio.sleep(0.02)
        assert await answered(port) == 200
        assert server.connections <= 40
        for reader, writer in keyed:  # still open
            writer.write(HELLO)
            await reader.readuntil(b"hi")


async def test_oldest_idle_connection_makes_room() -> None:
    async with serving(connections=4) as (server, port), Crowd(port) as crowd:
        links = await crowd.enter(4, HELLO)
        for reader, _ in links:
            await reader.readuntil(b"hi")
        await crowd.enter(2, HELLO)
        assert await links[0][0].read() == b""
        assert await answered(port) == 200
        assert server.connections <= 4
        assert server.rejections["connections"] >= 1


async def test_connections_beyond_the_limit_wait() -> None:
    """They got 503, or were reset."""
    async with serving(connections=8) as (server, port):
        sent = HEAD + KEY + b"Content-Length: 2\r\nConnection: close\r\n\r\nhi"
        answers = await asyncio.gather(*(raw(port, sent) for _ in range(200)))
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        assert server.rejections == {}


async def test_full_server_gives_the_place_of_a_kept_connection_to_others() -> None:
    async with serving(connections=2) as (_, port), Crowd(port) as crowd:
        links = await crowd.enter(20, HELLO)
        for reader, _ in links:
            await reader.readuntil(b"hi")


async def test_handshake_that_never_ends_does_not_delay_the_end(tmp_path: Path) -> None:
    certified(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with asyncio.timeout(SOON_S), HttpServer(secured, limits=HttpLimits()) as server:
        port = await server.listen(HOST, 0, tls=context)
        async with Crowd(port) as crowd:
            await crowd.enter(3)
            while server.connections < 3:  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0.01)
            began = time.monotonic()
            await server.drain()
            assert time.monotonic() - began < HANDSHAKE_S / 2
            assert server.connections == 0


async def test_client_without_a_key_gets_less_time() -> None:
    async with serving(anonymous_s=0.05) as (_, port):
        assert await raw(port) == b""
        assert (await raw(port, HEAD)).startswith(b"HTTP/1.1 408 ")
        keyed = post(b"", KEY[:-2], b"Connection: close")
        assert (await raw(port, keyed)).startswith(b"HTTP/1.1 200")


async def test_server_without_keys_limits_connections_only_together() -> None:
    own = HttpLimits(connections=8)
    async with asyncio.timeout(SOON_S), HttpServer(echo, limits=own) as server:
        port = await server.listen(HOST, 0)
        async with Crowd(port) as crowd:
            await crowd.enter(8)
            assert await answered(port) in (200, 503)
            assert server.connections <= 8


@pytest.mark.parametrize("key", [b"", KEY])
async def test_client_that_does_not_read_gets_few_responses(key: bytes) -> None:
    """1.5 MB of requests, of which no response was read, took 1.85 GB."""
    made = 0

    async def large(request: HttpRequest, response: ResponseWriter) -> None:
        nonlocal made
        made += 1
        response.send(200, b"x" * 100_000, [])

    limits = HttpLimits(anonymous_s=1.0, stalled_s=1.0)
    async with (
        asyncio.timeout(SOON_S),
        HttpServer(large, limits=limits, has_key=has_key) as server,
    ):
        port = await server.listen(HOST, 0)
        with socket.create_connection((HOST, port)) as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.get_running_loop().sock_sendall(client, (HEAD + key + b"\r\n") * 500)
            while server.connections or not made:  # noqa: ASYNC110  # the client sees no event
                await asyncio.sleep(0.01)
        assert made < 200


async def test_path_with_other_characters_is_rejected() -> None:
    async with serving() as (_, port):
        asked = b"GET /\xe4 HTTP/1.1\r\nHost: h\r\n" + KEY + b"\r\n"
        assert (await raw(port, asked)).startswith(b"HTTP/1.1 400 ")


async def test_requests_beyond_the_limit_are_not_parsed() -> None:
    """64 KiB of requests, of which none was answered, took 2 MB; 1,000 clients took 2 GB."""
    got, answer = asyncio.Event(), asyncio.Event()

    async def wait(request: HttpRequest, response: ResponseWriter) -> None:
        got.set()
        await answer.wait()
        response.send(200, request.path.encode())

    async with asyncio.timeout(SOON_S), HttpServer(wait, has_key=has_key) as server:
        port, paths = await server.listen(HOST, 0), [f"/{n}" for n in range(3000)]
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"".join(b"GET %b HTTP/1.1\r\n\r\n" % path.encode() for path in paths))
        before = sys.getallocatedblocks()
        await got.wait()
        assert sys.getallocatedblocks() - before < 3000
        answer.set()
        for path in paths:
            received = await reader.readuntil(b"\r\n\r\n" + path.encode())
            assert received.startswith(b"HTTP/1.1 200 ")
        await close(writer)


async def test_idle_connection_keeps_no_body() -> None:
    """100 idle connections of clients with a key kept 3 GB that no limit counted."""
    size = 1 << 20
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection(HOST, port)
        tracemalloc.start()
        try:
            writer.write(HEAD + KEY + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(size)
            assert tracemalloc.get_traced_memory()[0] < size
        finally:
            tracemalloc.stop()
        await close(writer)


class Kept:
    """Keeps a body in a cycle, as the traceback of an error may."""

    def __init__(self, body: bytes) -> None:
        self.body, self.cycle = body, self


async def test_bodies_in_cycles_do_not_fill_the_memory() -> None:
    """Errors kept 60 MB each: 40 of them 6 GB, until Python had seen thousands of objects."""
    kept = list[weakref.ref[Kept]]()

    async def keep(request: HttpRequest, reply: ResponseWriter) -> None:
        kept.append(weakref.ref(Kept(request.body)))
        reply.send(200, b"")

    gc.disable()
    try:
        limits = HttpLimits(collect_bytes=2_000)
        async with HttpServer(keep, limits=limits) as server, HttpClient() as client:
            url = f"http://{HOST}:{await server.listen(HOST, 0)}"
            for _ in range(20):
                assert await status(client, url, b"a" * 1_000) == 200
    finally:
        gc.enable()
    assert sum(each() is not None for each in kept) <= 2


async def test_connections_without_a_key_are_limited_in_a_large_table() -> None:
    """Each may hold a head of 64 KiB; half of a million descriptors would fill the memory."""
    table = ConnectionTable(100_000, keys=True)
    clients = [Opening() for _ in range(MAX_ANONYMOUS)]
    for client in clients:
        assert table.make_room()
        table.add(client)
    assert not table.make_room()  # all are young
    table.set_busy(clients[0])
    assert table.make_room()
