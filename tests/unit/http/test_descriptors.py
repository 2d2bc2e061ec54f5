"""Programs with few file descriptors: requests wait, and servers refuse with an answer."""

import asyncio
import subprocess
import sys

from hpc_dynamo.http import HttpClient, HttpRequest, ResponseWriter
from tests.support.runs import HANG_S
from tests.unit.http.test_http import HOST, echo, serving, status

# Runs in a process of its own: a server, and a client with more requests than descriptors.
PROGRAM = """
import asyncio, os, resource, sys
import uvloop
from hpc_dynamo.http import HttpClient, HttpServer

resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

async def answer(request, reply):
    await asyncio.sleep(0.01)
    reply.send(200, request.body)

async def ask(client, url):
    async with client.send("POST", url, "/", b"body") as response:
        return await response.read()

async def main():
    async with HttpServer(answer) as server:
        url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
        async with HttpClient(max_connections=int(sys.argv[1])) as client:
            answers = await asyncio.gather(*(ask(client, url) for _ in range(1000)))
    print(answers.count(b"body"))

(uvloop.run if sys.argv[2] == "uvloop" else asyncio.run)(main())
"""


def finished(limit: int, loop: str) -> str:
    """Return the number of answered requests."""
    argv = [sys.executable, "-c", PROGRAM, str(limit), loop]
    return subprocess.run(argv, capture_output=True, text=True, timeout=HANG_S, check=True).stdout


def test_requests_beyond_the_descriptors_wait() -> None:
    """EMFILE counted as a broken worker, which then got no requests for 15 s."""
    assert finished(60, "uvloop").strip() == "1000"


async def test_client_limits_its_connections() -> None:
    most, now = 0, 0

    async def count(request: HttpRequest, reply: ResponseWriter) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        reply.send(200, b"")

    async with serving(count) as (_, port), HttpClient(max_connections=3) as client:
        sent = [status(client, f"http://{HOST}:{port}", b"") for _ in range(20)]
        assert await asyncio.gather(*sent) == [200] * 20
    assert most == 3


async def test_idle_connections_give_way_to_other_servers() -> None:
    async with serving(echo) as (one, port), serving(echo) as (_, other):
        async with HttpClient(max_connections=4) as client:
            sent = [status(client, f"http://{HOST}:{port}", b"") for _ in range(4)]
            assert await asyncio.gather(*sent) == [200] * 4
            assert await status(client, f"http://{HOST}:{other}", b"") == 200
        assert one.connections <= 4
