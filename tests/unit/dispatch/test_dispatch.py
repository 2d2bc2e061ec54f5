"""Request execution over HTTP; engines are small servers on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.config import Router as RouterConfig
from hpc_dynamo.dispatch import BufferedResponse, Dispatcher, EngineRequest, WorkerFailed
from hpc_dynamo.dispatch.dispatcher import MAX_ATTEMPTS
from hpc_dynamo.engines import PdProtocol
from hpc_dynamo.engines.trtllm.pd_protocol import TrtllmPdProtocol
from hpc_dynamo.engines.vllm.pd_protocol import UNKNOWN_MODEL, VllmPdProtocol
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import HttpClient
from hpc_dynamo.router import AdmissionLimits, RequestRouter, RoutingRequest

SOON_S = 60.0
PATH = "/v1/completions"
TOKEN = "the run's token"
AS_IT_CAME = b'{"text":  "as it came"}'
HANDOVER = {"remote_engine_id": "e", "remote_block_ids": [[1, 2]], "remote_port": 5001}

Body = dict[str, Any]
Reply = Callable[[Body], Awaitable[web.Response]]


async def text(body: Body) -> web.Response:
    return web.Response(body=AS_IT_CAME)


async def handover(body: Body) -> web.Response:
    return web.json_response({"choices": [{"text": "!"}], "kv_transfer_params": HANDOVER})


async def silent(body: Body) -> web.Response:
    await asyncio.sleep(SOON_S)
    return web.Response()


def saying(content: bytes, status: int = 200) -> Reply:
    async def reply(body: Body) -> web.Response:
        return web.Response(status=status, body=content)

    return reply


def refusing(status: int) -> Reply:
    return saying(b'{"error": "so it is"}', status)


def after(free: asyncio.Event) -> Reply:
    async def reply(body: Body) -> web.Response:
        await free.wait()
        return await text(body)

    return reply


class Engine:
    """Fake engine: records requests and answers them."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0  # requests in progress
        self.url = ""
        self.told: Body = {"disaggregation_bootstrap_port": 8998}
        self.introduced = 0
        self.aborted = asyncio.Queue[Body]()
        self._came = asyncio.Condition()

    async def has(self, count: int) -> None:
        """Wait for a number of requests."""
        async with asyncio.timeout(SOON_S), self._came:
            await self._came.wait_for(lambda: len(self.bodies) >= count)

    async def introduce(self, request: web.Request) -> web.Response:
        self.introduced += 1
        return web.json_response(self.told)

    async def abort(self, request: web.Request) -> web.Response:
        self.aborted.put_nowait(await request.json())
        return web.Response()

    async def post(self, request: web.Request) -> web.Response:
        self.bodies.append(json.loads(await request.read()))
        self.headers.append(dict(request.headers))
        self.now += 1
        self.most = max(self.most, self.now)
        async with self._came:
            self._came.notify_all()
        try:
            return await self.reply(self.bodies[-1])
        finally:
            self.now -= 1


class Sender(RequestRouter):
    """Router with a dispatcher."""

    def __init__(
        self, kind: TopologyKind, client: HttpClient, tasks: asyncio.TaskGroup, protocol: PdProtocol
    ) -> None:
        super().__init__(kind, RouterConfig(), AdmissionLimits(avoid_s=0.05))
        self.dispatcher = Dispatcher(self, protocol, client, tasks)

    async def send(
        self, path: str, body: Body, timeout_s: float, answer: BufferedResponse | None = None
    ) -> BufferedResponse:
        answer, content = answer or BufferedResponse(), json.dumps(body).encode()
        async with asyncio.timeout(timeout_s):
            await self.dispatcher.run(EngineRequest(path, content, body, RoutingRequest()), answer)
        return answer


class House:
    """Dispatcher with its engines."""

    def __init__(self, stack: AsyncExitStack, protocol: PdProtocol | None = None) -> None:
        self._stack, self._protocol = stack, protocol or VllmPdProtocol()

    async def dispatcher(self, kind: TopologyKind) -> Sender:
        self.client = await self._stack.enter_async_context(HttpClient.bearer(TOKEN))
        self.tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        return Sender(kind, self.client, self.tasks, self._protocol)

    async def engine(self, reply: Reply) -> Engine:
        engine = Engine(reply)
        app = web.Application()
        app.router.add_post("/v1/{path}", engine.post)
        app.router.add_get("/server_info", engine.introduce)
        app.router.add_post("/abort_request", engine.abort)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        engine.url = f"http://127.0.0.1:{port}"
        return engine

    async def split(self, prefill: Reply, decode: Reply) -> tuple[Sender, Engine, Engine]:
        """Return a dispatcher for a prefill worker, rank 0, and a decode worker, rank 1."""
        dispatcher = await self.dispatcher(TopologyKind.disaggregated)
        engines = await self.engine(prefill), await self.engine(decode)
        await dispatcher.add_worker(0, Role.prefill, engines[0].url)
        await dispatcher.add_worker(1, Role.decode, engines[1].url)
        return dispatcher, *engines

    async def whole(self, *replies: Reply) -> tuple[Sender, list[Engine]]:
        """Return a dispatcher for aggregated workers, with ranks from 0."""
        dispatcher = await self.dispatcher(TopologyKind.aggregated)
        engines = [await self.engine(reply) for reply in replies]
        for rank, engine in enumerate(engines):
            await dispatcher.add_worker(rank, Role.aggregated, engine.url)
        return dispatcher, engines


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(stack)


async def failed(dispatcher: Sender, timeout_s: float = SOON_S) -> RequestFailed:
    with pytest.raises(RequestFailed) as error:
        await dispatcher.send(PATH, {"prompt": "x"}, timeout_s)
    return error.value


async def test_aggregated_request_and_response_are_unchanged(house: House) -> None:
    dispatcher, (engine,) = await house.whole(text)
    body = {"prompt": "hällo", "max_tokens": 5, "unknown": {"x": [None]}}
    answer = await dispatcher.send(PATH, body, SOON_S)
    assert (answer.content, answer.rank) == (AS_IT_CAME, 0)
    assert engine.bodies == [body]


async def test_sequential_handoff_passes_kv_address_to_decode(house: House) -> None:
    dispatcher, prefill, decode = await house.split(handover, text)
    body = {"prompt": "p", "max_tokens": 50, "temperature": 0}
    answer = await dispatcher.send(PATH, body, SOON_S)
    assert (answer.content, answer.rank) == (AS_IT_CAME, 1)
    assert prefill.bodies == [VllmPdProtocol().prefill(body)]
    assert decode.bodies == [body | {"kv_transfer_params": HANDOVER}]
    for engine in (prefill, decode):
        assert engine.headers[0]["Authorization"] == f"Bearer {TOKEN}"
        assert engine.headers[0]["Content-Type"] == "application/json"


async def test_least_loaded_worker_gets_next_request(house: House) -> None:
    free = asyncio.Event()
    dispatcher, engines = await house.whole(*[after(free)] * 3)
    async with asyncio.TaskGroup() as group:
        for _ in range(9):
            group.create_task(dispatcher.send(PATH, {"prompt": "x"}, SOON_S))
        for engine in engines:
            await engine.has(3)
        assert [e.now for e in engines] == [3, 3, 3]
        free.set()
    assert sorted(m.served for m in dispatcher.workers) == [3, 3, 3]
    assert all(m.active == 0 and m.busy_s > 0 for m in dispatcher.workers)


@pytest.mark.parametrize(
    ("status", "final"),
    [(400, True), (404, True), (422, True), (408, False), (429, False), (500, False)],
)
async def test_engine_error_is_raised_unchanged(house: House, status: int, final: bool) -> None:
    dispatcher, _ = await house.whole(refusing(status))
    error = await failed(dispatcher)
    assert (error.status, error.body, error.final) == (status, b'{"error": "so it is"}', final)
    assert error.message == f"worker 0 answered {status}: so it is"


@pytest.mark.parametrize(("prefill", "status"), [(refusing(400), 400), (text, 502)])
async def test_prefill_response_without_kv_address_skips_decode(
    house: House, prefill: Reply, status: int
) -> None:
    dispatcher, _, decode = await house.split(prefill, text)
    assert (await failed(dispatcher)).status == status
    assert decode.bodies == []


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"null"])
async def test_invalid_prefill_response_allows_retry(house: House, content: bytes) -> None:
    dispatcher, _, _ = await house.split(saying(content), text)
    assert not (await failed(dispatcher)).final


MALFORMED = ('{"choices": 5}', '{"choices": [1]}', '{"choices": [{"disaggregated_params": [1]}]}')


@pytest.mark.parametrize("content", MALFORMED)
async def test_malformed_prefill_response_fails_one_request_only(content: str) -> None:
    """Its exception in a task of the process ended the frontend, or the head of a batch."""
    params = {"disaggregated_params": {"ctx_request_id": 1}}
    async with AsyncExitStack() as stack:
        house = House(stack, TrtllmPdProtocol())
        dispatcher, prefill, _ = await house.split(saying(content.encode()), text)
        assert (await failed(dispatcher)).status == 502
        prefill.reply = saying(json.dumps({"choices": [params]}).encode())
        answer = await dispatcher.send(PATH, {"prompt": "p"}, SOON_S)
        assert answer.content == AS_IT_CAME


async def test_unreachable_engine_is_named_and_avoided(house: House) -> None:
    dispatcher = await house.dispatcher(TopologyKind.aggregated)
    await dispatcher.add_worker(4, Role.aggregated, "http://127.0.0.1:1")
    await dispatcher.add_worker(5, Role.aggregated, (await house.engine(text)).url)
    for _ in range(4):
        assert (await dispatcher.send(PATH, {"prompt": "x"}, SOON_S)).rank == 5


@pytest.mark.parametrize("closes", [True, False], ids=["closes", "refuses"])
async def test_request_waits_for_restart_of_only_worker(house: House, closes: bool) -> None:
    """Its engine was killed with the request, or just before it."""
    came = asyncio.Event()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        writer.close()

    dispatcher = await house.dispatcher(TopologyKind.aggregated)
    server = await asyncio.start_server(die, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if not closes:
        server.close()
    await dispatcher.add_worker(0, Role.aggregated, f"http://127.0.0.1:{port}")
    sent = asyncio.create_task(dispatcher.send(PATH, {"prompt": "x"}, SOON_S))
    if closes:
        await came.wait()
    while not dispatcher.dispatcher.retries:  # noqa: ASYNC110  # a counter has no event
        await asyncio.sleep(0)
    dispatcher.remove_worker(0)
    server.close()
    await dispatcher.add_worker(0, Role.aggregated, (await house.engine(text)).url)
    assert (await sent).content == AS_IT_CAME


async def test_engine_that_dies_during_response_fails_request(house: House) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        dispatcher = await house.dispatcher(TopologyKind.aggregated)
        await dispatcher.add_worker(0, Role.aggregated, f"http://127.0.0.1:{port}")
        error = await failed(dispatcher)
    assert (error.status, error.final) == (503, False)


async def test_silent_engine_fails_request_at_deadline(house: House) -> None:
    dispatcher, _ = await house.whole(silent)
    for silent_one in (dispatcher, await house.dispatcher(TopologyKind.aggregated)):
        with pytest.raises(TimeoutError):
            await silent_one.send(PATH, {"prompt": "x"}, 0.2)
    assert [m.active for m in dispatcher.workers] == [0]


async def test_request_waits_until_worker_joins(house: House) -> None:
    dispatcher = await house.dispatcher(TopologyKind.disaggregated)
    prefill, decode = await house.engine(handover), await house.engine(text)
    waiting = asyncio.create_task(dispatcher.send(PATH, {"prompt": "x"}, SOON_S))
    await dispatcher.add_worker(0, Role.prefill, prefill.url)
    assert not waiting.done()
    assert not prefill.bodies, "prefilled before there was a worker to take the blocks"
    await dispatcher.add_worker(1, Role.decode, decode.url)
    assert (await waiting).rank == 1


async def test_idle_workers_alternate_and_removed_worker_gets_none(house: House) -> None:
    dispatcher, engines = await house.whole(text, text)
    for _ in range(6):
        await dispatcher.send(PATH, {"prompt": "x"}, SOON_S)
    assert [len(e.bodies) for e in engines] == [3, 3]
    dispatcher.remove_worker(0)
    dispatcher.remove_worker(0)
    for _ in range(4):
        assert (await dispatcher.send(PATH, {"prompt": "x"}, SOON_S)).rank == 1


async def test_returned_rank_is_a_new_worker(house: House) -> None:
    """Only the busy time of the rank is kept, otherwise the rank would seem to have been idle."""
    dispatcher, _ = await house.whole(refusing(500))
    await failed(dispatcher)
    (before,) = (m.busy_s for m in dispatcher.workers)
    dispatcher.remove_worker(0)
    engine = await house.engine(text)
    await dispatcher.add_worker(0, Role.aggregated, engine.url)
    (member,) = dispatcher.workers
    assert (member.served, member.busy_s) == (0, before)
    assert (await dispatcher.send(PATH, {"prompt": "x"}, SOON_S)).content == AS_IT_CAME


async def test_router_ready_waits_for_all_roles(house: House) -> None:
    dispatcher = await house.dispatcher(TopologyKind.disaggregated)
    ready = asyncio.create_task(dispatcher.wait_for_roles([Role.prefill, Role.decode]))
    await dispatcher.add_worker(0, Role.prefill, "http://127.0.0.1:1")
    await dispatcher.add_worker(1, Role.prefill, "http://127.0.0.1:1")
    await asyncio.sleep(0)
    assert not ready.done()
    await dispatcher.add_worker(2, Role.decode, "http://127.0.0.1:1")
    async with asyncio.timeout(SOON_S):
        await ready


async def test_cancelled_request_releases_lease(house: House) -> None:
    dispatcher, (engine,) = await house.whole(silent)
    task = asyncio.create_task(dispatcher.send(PATH, {"prompt": "x"}, SOON_S))
    await engine.has(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [m.active for m in dispatcher.workers] == [0]


async def test_hundreds_of_concurrent_requests_are_answered(house: House) -> None:
    """No connection pool limits concurrency."""
    free = asyncio.Event()
    dispatcher, (engine,) = await house.whole(after(free))
    async with asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(dispatcher.send(PATH, {"prompt": "x"}, SOON_S))
        await engine.has(200)
        free.set()
    assert engine.most == 200


async def test_cancelled_request_releases_kv_blocks(house: House) -> None:
    """A decode request with an unknown model makes vLLM free the blocks."""
    come, go = asyncio.Event(), asyncio.Event()

    async def last_moment(body: Body) -> web.Response:
        come.set()
        await go.wait()
        return await handover(body)

    dispatcher, _, decode = await house.split(last_moment, refusing(404))
    task = asyncio.create_task(dispatcher.send(PATH, {"prompt": "x", "model": "m"}, SOON_S))
    await come.wait()
    task.cancel()
    go.set()
    await decode.has(1)
    (body,) = decode.bodies
    assert body["model"] != "m"
    assert body["kv_transfer_params"] == HANDOVER


@pytest.mark.parametrize("status", [400, 404])
async def test_rejected_decode_releases_kv_blocks(house: House, status: int) -> None:
    dispatcher, _, decode = await house.split(handover, refusing(status))
    assert (await failed(dispatcher)).status == status
    await decode.has(2)
    assert decode.bodies[1] == decode.bodies[0] | {"model": UNKNOWN_MODEL}


async def test_unreached_worker_does_not_count_as_attempt(house: House) -> None:
    """A batch lets a request crash only one worker."""
    dispatcher, _ = await house.whole()
    dispatcher.dispatcher = Dispatcher(
        dispatcher, VllmPdProtocol(), house.client, house.tasks, max_attempts=1
    )
    engine = await house.engine(text)
    await dispatcher.add_worker(0, Role.aggregated, "http://127.0.0.1:1")
    assert not (await broken(dispatcher)).reached
    await dispatcher.add_worker(1, Role.aggregated, engine.url)
    assert (await dispatcher.send(PATH, {"prompt": "x"}, SOON_S)).rank == 1


async def test_single_attempt_reaches_one_worker_only(house: House) -> None:
    dispatcher, engines = await house.whole(refusing(500), refusing(500))
    dispatcher.dispatcher = Dispatcher(
        dispatcher, VllmPdProtocol(), house.client, house.tasks, max_attempts=1
    )
    assert (await broken(dispatcher)).reached
    assert sum(len(engine.bodies) for engine in engines) == 1


async def test_a_request_that_kills_its_worker_is_tried_once_more(house: House) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        deaths.append(writer.get_extra_info("sockname"))
        writer.close()

    deaths = list[object]()
    dispatcher = await house.dispatcher(TopologyKind.aggregated)
    async with AsyncExitStack() as stack:
        for rank in range(5):
            server = await asyncio.start_server(die, "127.0.0.1", 0)
            port = (await stack.enter_async_context(server)).sockets[0].getsockname()[1]
            await dispatcher.add_worker(rank, Role.aggregated, f"http://127.0.0.1:{port}")
        error = await broken(dispatcher)
    assert error.reached
    assert error.deaths == MAX_ATTEMPTS
    assert len(set(deaths)) == len(deaths) == MAX_ATTEMPTS == 2


async def test_lost_workers_do_not_count_as_killed(house: House) -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    dispatcher = await house.dispatcher(TopologyKind.aggregated)
    async with await asyncio.start_server(wait, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for rank in range(2):
            await dispatcher.add_worker(rank, Role.aggregated, f"http://127.0.0.1:{port}")
        sent = asyncio.create_task(broken(dispatcher))
        for _ in range(2):
            while not (busy := [w.rank for w in dispatcher.workers if w.active]):  # noqa: ASYNC110
                await asyncio.sleep(0)
            dispatcher.remove_worker(busy[0])
        assert (await sent).deaths == 0


async def broken(dispatcher: Sender) -> WorkerFailed:
    error = await failed(dispatcher)
    assert isinstance(error, WorkerFailed)
    return error
