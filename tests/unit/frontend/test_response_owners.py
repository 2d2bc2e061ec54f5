"""The worker of a response is remembered only for ids that an engine knows."""

import pytest

from hpc_dynamo.config import Role
from hpc_dynamo.frontend.engine_passthrough import MAX_ID_CHARACTERS, RESPONSES, EnginePassthrough
from hpc_dynamo.http import HttpClient, HttpRequest, HttpServer, ResponseWriter
from hpc_dynamo.messages import WorkerReport, WorkerState
from hpc_dynamo.router import RunView

ROUTE = f"{RESPONSES}/{{response_id}}"
LONG = "r" * (MAX_ID_CHARACTERS + 1)


@pytest.mark.parametrize(
    ("response_id", "status", "remembered"),
    [("r1", 200, True), ("r1", 400, False), ("r1", 500, False), (LONG, 200, False)],
)
async def test_only_short_ids_that_an_engine_knows_are_remembered(
    response_id: str, status: int, *, remembered: bool
) -> None:
    asked = list[str]()

    async def engine(request: HttpRequest, response: ResponseWriter) -> None:
        asked.append(request.path)
        response.send(status, b"{}")

    async with HttpClient() as client, HttpServer(engine) as server:
        passthrough = EnginePassthrough(client)
        view = RunView(workers=(report(await server.listen("127.0.0.1", 0)),))

        async def front(request: HttpRequest, response: ResponseWriter) -> None:
            await passthrough.forward(ROUTE, request, response, "id", view)

        async with HttpServer(front) as own:
            url = f"http://127.0.0.1:{await own.listen('127.0.0.1', 0)}"
            async with client.send("GET", url, f"{RESPONSES}/{response_id}") as answer:
                assert answer.status == status
        assert len(passthrough._owners) == remembered
        known = await passthrough.response_owner(response_id, view)
        assert known == (7 if remembered else None)
        assert len(asked) == (1 if response_id == LONG else 2)


@pytest.mark.parametrize(
    "start",
    [
        b'{"id":"resp_a-B_1","created_at":1}',
        b'event: response.created\ndata: {"response":{"id": "resp_a-B_1"},"type":"x"}\n\n',
    ],
)
async def test_worker_that_generated_a_response_is_asked_first(start: bytes) -> None:
    asked = list[int]()

    async def engine(request: HttpRequest, response: ResponseWriter) -> None:
        asked.append(int(request.headers["host"].rpartition(":")[2]))
        response.send(200 if asked[-1] == keeps else 404, b"{}")

    async with HttpClient() as client, HttpServer(engine) as server:
        ports = [await server.listen("127.0.0.1", 0) for _ in range(4)]
        view = RunView(workers=tuple(report(port, rank) for rank, port in enumerate(ports)))
        keeps, passthrough = ports[2], EnginePassthrough(client)
        passthrough.remember_response(start, 2)
        passthrough.remember_response(b'{"id":"chatcmpl-1"}', 1)
        assert await passthrough.response_owner("resp_a-B_1", view) == 2
        assert asked == [ports[2]]
        # It was restarted, or another frontend process had the request: all are asked.
        keeps = ports[3]
        assert await passthrough.response_owner("resp_a-B_1", view) == 3
        assert sorted(asked[1:]) == sorted(ports)
        assert await passthrough.response_owner("resp_other", view) == 3
        assert list(passthrough._owners) == ["resp_a-B_1", "resp_other"]


async def test_half_a_surrogate_pair_is_no_response() -> None:
    async def engine(request: HttpRequest, response: ResponseWriter) -> None:
        response.send(404, b"{}")

    async with HttpClient() as client, HttpServer(engine) as server:
        view = RunView(workers=(report(await server.listen("127.0.0.1", 0)),))
        for response_id in ("\ud800", "x\udfff", "", "\r\n"):
            assert await EnginePassthrough(client).response_owner(response_id, view) is None


def report(port: int, rank: int = 7) -> WorkerReport:
    url, ready = f"http://127.0.0.1:{port}", WorkerState.ready
    return WorkerReport(
        rank=rank, role=Role.aggregated, node=0, host="localhost", state=ready, url=url
    )
