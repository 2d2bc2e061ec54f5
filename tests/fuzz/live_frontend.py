"""Raw bytes to a live frontend: its real code, sockets and router, with an engine that answers."""

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

from hpc_dynamo.config import Config, Engine, Role
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.frontend.__main__ import serve
from hpc_dynamo.http import HttpClient, HttpRequest, HttpServer, ResponseWriter
from hpc_dynamo.messages import WorkerReport, WorkerState
from hpc_dynamo.router import ModelAvailability, RequestRouter, RouterServer, RunView
from hpc_dynamo.run import Attempt, Run, Secrets
from hpc_dynamo.topology import Plan

HOST, MODEL, CONTEXT = "127.0.0.1", "m", 4096
SOON_S, READ_S = 60.0, 0.005
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, without a port in TIME_WAIT
ANSWER = {"id": "x", "object": "text_completion", "choices": [{"index": 0, "text": "a"}]}
KEY = "key-of-the-run"
CONFIG = Config(engine=Engine(name="simulator"))  # aggregated workers
LOADED = ModelAvailability(
    ready=True, names=(MODEL,), context_tokens=CONTEXT, max_context_tokens=CONTEXT,
    operations=("POST /v1/rerank", "GET /v1/responses/{response_id}"),
)  # fmt: skip


def _head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: h", *headers, "", "")).encode()


def _post(path: str, body: object, *headers: str, key: str = KEY) -> bytes:
    content = json.dumps(body).encode()
    own = (f"Authorization: Bearer {key}", f"Content-Length: {len(content)}")
    return _head("POST", path, *own, *headers) + content


def conversations() -> list[bytes]:
    """Return requests of all kinds, as clients send them."""
    keyed = f"Authorization: Bearer {KEY}"
    chat: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    text = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 3}
    stored = _post("/v1/responses", {"model": MODEL, "input": "a", "previous_response_id": "r"})
    chunked = _head("POST", "/v1/completions", keyed, "Transfer-Encoding: chunked")
    return [
        _post("/v1/chat/completions", chat | {"stream": True}),
        _post("/v1/completions", text, "X-Priority: 3", "X-Request-Id: a"),
        _post("/v1/completions", text) * 3,
        _post("/v1/completions?a=b", text | {"n": 2, "vllm_xargs": {}}, "Expect: 100-continue"),
        chunked + b'11\r\n{"prompt": "abc"}\r\n0\r\nX-Trailer: 1\r\n\r\n',
        _post("/v1/messages", chat | {"max_tokens": 2}, f"x-api-key: {KEY}"),
        stored,
        stored.replace(b'"r"', b'"\xff"'),  # no UTF-8
        _post("/v1/route", chat, "X-Router-Temperature: 0.5"),
        _post("/v1/rerank", {"query": "a", "documents": ["b"]}),
        _post("/v1/workers/0/sleep", {}),
        _post("/v1/completions", text, key="wrong"),
        _head("GET", "/v1/models", keyed) + _head("HEAD", "/ready"),
        _head("GET", "/v1/responses/a%2Fb", keyed, "Connection: close"),
        _head("GET", "/metrics", keyed, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
        _head("OPTIONS", "/v1/models", "Origin: http://a", "Access-Control-Request-Method: GET"),
        b"GET /live HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]  # fmt: skip


class _Defects(logging.Handler):
    """Collects errors that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        self.found.append(repr(context))


class LiveFrontend:
    """Frontend with a router and an engine in this process."""

    def __init__(self, attempt: Attempt, folder: Path) -> None:
        self._attempt, self._folder = attempt, folder
        self._stack, self.defects = AsyncExitStack(), _Defects()

    async def start(self) -> None:
        """Return once the frontend serves."""
        asyncio.get_running_loop().set_exception_handler(self.defects.on_loop_error)
        engine = await self._stack.enter_async_context(HttpServer(_answer))
        url = f"http://{HOST}:{await engine.listen(HOST, 0)}"
        router, link = RequestRouter.from_config(CONFIG), self._folder / "link"
        await router.add_worker(0, Role.aggregated, url)
        worker = WorkerReport(
            rank=0, role=Role.aggregated, node=0, host="h", state=WorkerState.ready, url=url
        )
        view = RunView(models={"": LOADED}, workers=(worker,))
        server = RouterServer(
            {"": router}, link, lambda: view, lambda *_: None, lambda _: None, _refuse_sleep
        )
        await self._stack.enter_async_context(server)
        listening = socket.create_server((HOST, 0))
        self._url = f"http://{HOST}:{listening.getsockname()[1]}"
        self._port = listening.getsockname()[1]
        self._frontend = asyncio.create_task(serve(self._attempt, 0, link, listening))
        self._server = server
        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        self._client = await self._stack.enter_async_context(HttpClient(headers))
        await self._canary()

    async def stop(self) -> None:
        """Stop in the order of a job. Without it, the end of the loop waits for the frontend."""
        async with asyncio.timeout(SOON_S):
            self._server.close_clients()
            await self._frontend
            await self._stack.aclose()

    async def exchange(self, data: bytes) -> None:
        """Send bytes in two pieces. Another client must be served; no response may be an error of
        the frontend."""
        reader, writer = await asyncio.open_connection(HOST, self._port)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.write(data[: len(data) // 3])
        await asyncio.sleep(0)
        writer.write(data[len(data) // 3 :])
        await self._canary()
        received = b""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(READ_S):
                received = await reader.read(1 << 16)
        writer.transport.abort()
        assert received[:9] in (b"", b"HTTP/1.1 "), received
        assert received[9:12] != b"500", received
        assert not self.defects.found, self.defects.found

    async def _canary(self) -> None:
        async with (
            asyncio.timeout(SOON_S),
            self._client.send("GET", self._url, "/v1/models") as response,
        ):
            await response.read()
            assert response.status == 200


async def _answer(request: HttpRequest, response: ResponseWriter) -> None:
    if b'"stream": true' not in request.body:
        response.send(200, json.dumps(ANSWER).encode(), [(b"content-type", b"application/json")])
        return
    response.begin(200, [(b"content-type", b"text/event-stream")])
    response.write(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(ANSWER).encode())
    response.end()


async def _refuse_sleep(rank: int, asleep: bool) -> bytes:
    raise RequestFailed(f"worker {rank} does not sleep here", status=409)


@contextmanager
def live_frontend() -> Iterator[Callable[[bytes], None]]:
    """Yield a reader of raw bytes: the frontend, for as long as the block lasts."""
    with (
        TemporaryDirectory(prefix="fuzz-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        run = Run(Path(folder) / "run")
        run.create(Secrets(token="t", public="p", private="p"))
        run.key_file.write_text(KEY)
        attempt = run.new_attempt(CONFIG, Plan(workers=(), nodes=1, gpus_per_node=0))
        live, logger = LiveFrontend(attempt, Path(folder)), logging.getLogger("hpc_dynamo")
        logger.addHandler(live.defects)
        try:
            runner.run(live.start())
            yield lambda data: runner.run(live.exchange(data))
        finally:
            runner.run(live.stop())
            logger.removeHandler(live.defects)
