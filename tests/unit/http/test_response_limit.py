"""Responses of engines are read up to a limit."""

import asyncio

import pytest

from hpc_dynamo.http import HttpClient, response
from hpc_dynamo.http.response import MAX_HEAD_BYTES

LIMIT = 1 << 20
HEAD = b"HTTP/1.1 200 OK\r\n"


class Endless:
    """A server that repeats `piece` after `start` until the connection is closed."""

    def __init__(self, start: bytes, piece: bytes) -> None:
        self._start, self._piece = start, piece
        self.sent_bytes = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self._start)
        try:
            while self.sent_bytes < 256 << 20:
                writer.write(self._piece)
                self.sent_bytes += len(self._piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


BODY = b"x" * 65536
CHUNK = b"10000\r\n" + BODY + b"\r\n"


@pytest.mark.parametrize(
    ("start", "piece", "limit"),
    [
        (HEAD + b"content-length: 900000000000\r\n\r\n", BODY, LIMIT),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", CHUNK, LIMIT),
        (HEAD + b"\r\n", BODY, LIMIT),
        (HEAD, b"a: b\r\n" * 8192, MAX_HEAD_BYTES),
        (HEAD + b"a: ", BODY, MAX_HEAD_BYTES),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2048, MAX_HEAD_BYTES),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\na: ", BODY, LIMIT),
    ],
)
async def test_endless_response(start: bytes, piece: bytes, limit: int) -> None:
    endless = Endless(start, piece)
    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(60), server, HttpClient() as client:
        with pytest.raises(ConnectionError, match=f"more than {limit} bytes"):
            async with client.send("GET", url, "/") as answer:
                await answer.read(LIMIT)
    assert endless.sent_bytes < 64 << 20


@pytest.mark.parametrize("count", [1, 3])
async def test_each_response_has_its_own_limit(count: int) -> None:
    """A connection is used again, also after a response without a limit."""
    body = b"x" * (LIMIT - 1000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2 * count):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(60), server, HttpClient() as client:
        for _ in range(count):
            async with client.send("GET", url, "/") as answer:
                assert await answer.read(LIMIT) == body
            async with client.send("GET", url, "/") as answer:
                assert await answer.read() == body
    assert response.MAX_REPORT_BYTES > LIMIT
