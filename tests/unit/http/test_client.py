"""HTTP client: text of users cannot become a request, and answers belong to their request."""

import asyncio
import tracemalloc

import pytest

from hpc_dynamo.http import HttpClient, HttpRequest, HttpServer, ResponseWriter

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "path", "name", "value"),
    [
        ("GET", "/v1/x HTTP/1.1\r\nhost: a\r\n\r\nPOST /sleep HTTP/1.1\r\nx: y", b"a", b"b"),
        ("GET", "/v1/x y", b"a", b"b"),
        ("GET", "/v1/\x00", b"a", b"b"),
        ("GET", "/v1/\u0123", b"a", b"b"),
        ("GET", "", b"a", b"b"),
        ("GET /sleep HTTP/1.1\r\n", "/", b"a", b"b"),
        ("GET", "/", b"a", b"b\r\nc: d"),
        ("GET", "/", b"a", b"b\nc: d"),
        ("GET", "/", b"a\r\nb", b"b"),
    ],
)
async def test_text_with_line_breaks_is_refused(
    method: str, path: str, name: bytes, value: bytes
) -> None:
    async with HttpClient() as client:
        with pytest.raises(ValueError, match=r"not an HTTP request|line break"):
            async with client.send(method, "http://127.0.0.1:1", path, headers=[(name, value)]):
                raise AssertionError("it was sent")


@pytest.mark.parametrize("together", [True, False])
async def test_answer_to_no_request_is_never_read(*, together: bool) -> None:
    """A server sends two answers to the first request of each connection."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER + b"1" + (ANSWER + b"2" if together else b""))
        if not together:
            await writer.drain()
            await late.wait()
            writer.write(ANSWER + b"2")
        await reader.read()  # the client closes
        writer.close()
        closed.set()

    late, closed = asyncio.Event(), asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(60), server, HttpClient() as client:
        for _ in range(2):
            async with client.send("GET", url, "/") as answer:
                assert await answer.read() == b"1"
            late.set()
            await closed.wait()
            closed.clear()
            late.clear()
    assert connections == 2


async def test_kept_connection_keeps_no_response() -> None:
    """Each idle connection to an engine kept its last response, whatever its size."""
    size = 1 << 20

    async def serve(request: HttpRequest, response: ResponseWriter) -> None:
        response.send(200, bytes(size))

    async with asyncio.timeout(60), HttpServer(serve) as server, HttpClient() as client:
        port = await server.listen("127.0.0.1", 0)
        tracemalloc.start()
        try:
            async with client.send("GET", f"http://127.0.0.1:{port}", "/") as answer:
                assert len(await answer.read()) == size
            assert tracemalloc.get_traced_memory()[0] < size
        finally:
            tracemalloc.stop()


async def test_start_of_a_long_response_is_read() -> None:
    """Errors of 100 MB, in which engines repeat the request, stopped a frontend for seconds."""

    async def serve(request: HttpRequest, response: ResponseWriter) -> None:
        response.send(400, b"x" * int(request.query))

    async with asyncio.timeout(60), HttpServer(serve) as server, HttpClient() as client:
        url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
        for size in (0, 1, 999, 1000, 1001, 10 << 20):
            async with client.send("GET", url, f"/?{size}") as answer:
                assert await answer.read_start(1000) == b"x" * min(size, 1000)
