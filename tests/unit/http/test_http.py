"""HTTP server and client over sockets: limits, errors, back pressure, shutdown."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_dynamo.http import Handler, HttpClient, HttpLimits, HttpRequest, HttpServer, ResponseWriter

HOST = "127.0.0.1"
SOON_S = 60.0
MB = 1 << 20


async def echo(request: HttpRequest, reply: ResponseWriter) -> None:
    reply.send(200, request.body, [(b"x-path", request.path.encode())])


@asynccontextmanager
async def serving(
    handler: Handler, limits: HttpLimits | None = None
) -> AsyncIterator[tuple[HttpServer, int]]:
    async with asyncio.timeout(SOON_S), HttpServer(handler, limits=limits) as server:
        yield server, await server.listen(HOST, 0)


async def raw(port: int, *parts: bytes) -> bytes:
    """Return the response to these bytes until the server closes."""
    reader, writer = await asyncio.open_connection(HOST, port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /x HTTP/1.1", b"Host: h", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def test_client_and_server_exchange_request_and_response() -> None:
    async with serving(echo) as (_, port), HttpClient() as client:
        async with client.send("POST", f"http://{HOST}:{port}", "/a?b=1", b"body") as answer:
            assert (answer.status, await answer.read()) == (200, b"body")
            assert answer.headers["x-path"] == "/a"


async def test_client_reuses_connection() -> None:
    async with serving(echo) as (server, port), HttpClient() as client:
        for _ in range(3):
            async with client.send("POST", f"http://{HOST}:{port}", "/") as answer:
                await answer.read()
        assert server.connections == 1


async def test_client_replaces_connection_closed_by_server() -> None:
    async with HttpClient() as client:
        async with serving(echo) as (_, port):
            async with client.send("POST", f"http://{HOST}:{port}", "/") as answer:
                await answer.read()
        async with HttpServer(echo) as again:
            await again.listen(HOST, port)
            async with client.send("POST", f"http://{HOST}:{port}", "/", b"2") as answer:
                assert await answer.read() == b"2"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.data())
def test_server_parses_requests_split_anywhere(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(post, bodies[:-1])) + post(bodies[-1], b"Connection: close")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    async def go() -> bytes:
        async with serving(echo) as (_, port):
            return await raw(port, *parts)

    answer = asyncio.run(go())
    assert answer.count(b"HTTP/1.1 200 OK") == len(bodies)
    assert answer.endswith(b"\r\n\r\n" + bodies[-1])


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_server_survives_garbage(garbage: bytes) -> None:
    async def go() -> None:
        async with serving(echo) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(garbage)
            writer.write_eof()
            await reader.read()
            writer.close()
            async with HttpClient() as client:
                async with client.send("POST", f"http://{HOST}:{port}", "/", b"ok") as answer:
                    assert await answer.read() == b"ok"

    asyncio.run(go())


SMALL = HttpLimits(header_bytes=1000, body_bytes=1000, receive_s=0.05, idle_s=0.05)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 2000 + b"\r\n\r\n", 431),
        (post(b"a" * 2000), 413),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
         b"7d0\r\n" + b"a" * 2000 + b"\r\n0\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc", 408),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    ],
)  # fmt: skip
async def test_server_rejects_malformed_or_oversized_requests(sent: bytes, status: int) -> None:
    async with serving(echo, SMALL) as (_, port):
        assert (await raw(port, sent)).startswith(b"HTTP/1.1 %d " % status)


async def test_server_limits_buffered_bodies_of_all_connections() -> None:
    came, waits = asyncio.Event(), asyncio.Event()

    async def hold(request: HttpRequest, reply: ResponseWriter) -> None:
        came.set()
        await waits.wait()
        reply.send(200, b"")

    async with serving(hold, HttpLimits(buffered_bytes=1000)) as (_, port), HttpClient() as client:
        url = f"http://{HOST}:{port}"
        async with asyncio.TaskGroup() as group:
            first = group.create_task(status(client, url, b"a" * 900))
            await came.wait()
            assert await status(client, url, b"b" * 900) == 429
            waits.set()
            assert await first == 200
        assert await status(client, url, b"c" * 900) == 200


async def status(client: HttpClient, url: str, body: bytes) -> int:
    async with client.send("POST", url, "/", body) as answer:
        await answer.read()
        return answer.status


async def test_client_disconnect_cancels_handler() -> None:
    came, left = asyncio.Event(), asyncio.Event()

    async def hold(request: HttpRequest, reply: ResponseWriter) -> None:
        came.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with serving(hold) as (_, port):
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(post(b""))
        await came.wait()
        writer.close()
        await left.wait()


async def test_failing_handler_affects_only_its_request() -> None:
    async def broken(request: HttpRequest, reply: ResponseWriter) -> None:
        if request.body == b"late":
            reply.begin(200)
            reply.write(b"some")
        raise ValueError("on purpose")

    async with serving(broken) as (_, port):
        closing = b"Connection: close"
        assert (await raw(port, post(b"", closing))).startswith(b"HTTP/1.1 500 ")
        cut = await raw(port, post(b"late", closing))
        assert cut.startswith(b"HTTP/1.1 200 ")
        assert not cut.endswith(b"0\r\n\r\n")


class Kept:
    """Byte sink that keeps everything."""

    def __init__(self) -> None:
        self.parts = list[bytes]()
        self.congested = False

    def write(self, data: bytes) -> None:
        self.parts.append(data)

    async def drain(self) -> None: ...


async def test_relay_forwards_stream_as_it_arrives() -> None:
    sent, more = asyncio.Event(), asyncio.Event()

    async def stream(request: HttpRequest, reply: ResponseWriter) -> None:
        reply.begin(200)
        reply.write(b"first")
        sent.set()
        await more.wait()
        reply.write(b"second")
        reply.end()

    class Sink(Kept):
        def write(self, data: bytes) -> None:
            super().write(data)
            more.set()  # the rest arrives only after this piece was relayed

    sink = Sink()
    async with serving(stream) as (_, port), HttpClient() as client:
        async with client.send("GET", f"http://{HOST}:{port}", "/") as answer:
            await answer.relay(sink)
    assert sink.parts == [b"first", b"second"]


@pytest.mark.parametrize("after", [1, 2, 5])
async def test_relay_raises_what_its_sink_raises(after: int) -> None:
    ended = asyncio.Event()

    async def stream(request: HttpRequest, reply: ResponseWriter) -> None:
        reply.begin(200)
        try:
            while True:
                reply.write(b"piece")
                await asyncio.sleep(0)
        finally:
            ended.set()

    class Full(Kept):
        def write(self, data: bytes) -> None:
            if len(self.parts) == after:
                raise ValueError("full")
            super().write(data)

    async with serving(stream) as (_, port), HttpClient() as client:
        with pytest.raises(ValueError, match="full"):
            async with client.send("GET", f"http://{HOST}:{port}", "/") as answer:
                await answer.relay(Full())
        await ended.wait()  # the connection is closed


async def test_slow_reader_blocks_only_its_own_writer() -> None:
    written = 0

    async def pour(request: HttpRequest, reply: ResponseWriter) -> None:
        nonlocal written
        if request.body:
            return reply.send(200, b"quick")
        reply.begin(200)
        while True:
            reply.write(b"x" * 65536)
            written += 65536
            await (reply.drain() if reply.congested else asyncio.sleep(0))

    async with serving(pour) as (_, port), HttpClient() as client:
        _, writer = await asyncio.open_connection(HOST, port, limit=1024)
        writer.write(post(b""))
        before = -1
        while before != written or not written:  # wait until it stops writing
            before = written
            for _ in range(50):
                assert await status(client, f"http://{HOST}:{port}", b"?") == 200
        assert written < 64 * MB  # limited by the buffers of the kernel and the server
        writer.close()


async def test_client_raises_for_broken_response() -> None:
    async def cut(request: HttpRequest, reply: ResponseWriter) -> None:
        reply.begin(200)
        reply.write(b"half")

    async with serving(cut) as (_, port), HttpClient() as client:
        async with client.send("GET", f"http://{HOST}:{port}", "/") as answer:
            with pytest.raises(ConnectionError):
                await answer.read()


async def test_drain_waits_for_responses() -> None:
    came, more = asyncio.Event(), asyncio.Event()

    async def slow(request: HttpRequest, reply: ResponseWriter) -> None:
        came.set()
        await more.wait()
        reply.send(200, b"whole")

    async with (
        serving(slow) as (server, port),
        HttpClient() as client,
        asyncio.TaskGroup() as group,
    ):
        asked = group.create_task(status(client, f"http://{HOST}:{port}", b""))
        await came.wait()
        drained = group.create_task(server.drain())
        while True:  # wait until it stops listening
            try:
                _, writer = await asyncio.open_connection(HOST, port)
                writer.close()
            except ConnectionError:
                break
        assert not drained.done()
        more.set()
        await drained
        assert await asked == 200


async def test_client_and_server_over_tls() -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    async with (
        asyncio.timeout(SOON_S),
        HttpServer(echo) as server,
        HttpClient(tls=trusted) as client,
    ):
        port = await server.listen("localhost", 0, tls=context)
        async with client.send("POST", f"https://localhost:{port}", "/", b"secret") as answer:
            assert await answer.read() == b"secret"


async def test_server_declines_http2_upgrade() -> None:
    """Offers have the form of Java's client."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA"
    async with serving(echo) as (_, port):
        answer = await raw(port, post(b"body", offer) + post(b"next", b"Connection: close"))
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert b"\r\n\r\nbody" in answer
    assert answer.endswith(b"next")


async def test_http10_client_gets_stream_without_chunks() -> None:
    async def stream(request: HttpRequest, reply: ResponseWriter) -> None:
        reply.begin(200)
        reply.write(b"plain")
        reply.end()

    async with serving(stream) as (_, port):
        answer = await raw(port, b"GET / HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nplain")
    assert b"chunked" not in answer


async def test_client_distinguishes_crashed_from_absent_server() -> None:
    """The request is sent again on a new connection, which is refused."""
    client = HttpClient()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        server.close()
        writer.close()

    server = await asyncio.start_server(once, HOST, 0)
    url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(SOON_S), client:
        async with client.send("GET", url, "/") as answer:
            await answer.read()
        for error in (ConnectionResetError, ConnectionRefusedError):
            with pytest.raises(error):
                async with client.send("GET", url, "/"):
                    pass


async def test_socket_that_another_process_shut_down_is_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A head shuts the endpoint down before its frontends have ended."""
    listening = socket.create_server((HOST, 0))
    other = listening.dup()
    async with HttpServer(echo) as server:
        port = await server.listen_on(listening)
        async with HttpClient() as client:
            assert await status(client, f"http://{HOST}:{port}", b"") == 200
            with other:
                other.shutdown(socket.SHUT_RDWR)
            # The client's connection is served after a look at the socket.
            assert await status(client, f"http://{HOST}:{port}", b"") == 200
    assert not caplog.records
