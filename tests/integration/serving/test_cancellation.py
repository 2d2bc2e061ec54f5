"""A client that disconnects frees its request on every engine involved."""

import asyncio
import json
from http.client import HTTPConnection
from typing import Any

from tests.integration.serving.served import MODEL, Served
from tests.support.runs import until

ENDLESS: dict[str, Any] = {"model": MODEL, "max_tokens": 8000, "prompt": "Tell me a long story. "}
WITHOUT_END = {"ignore_eos": True}  # a minute of work, longer than any test waits


def started(served: Served) -> None:
    until("an engine works on it", lambda: served.busy() > 0, 10)


def freed(served: Served, cancelled: float) -> None:
    """Wait until engines and router are idle and the cancellations are counted."""
    until("the engines are idle", lambda: served.busy() == 0, 10)
    until("the router is idle", lambda: served.metrics()["hpc_dynamo_requests_running"] == 0, 10)
    until("counted", lambda: count(served) >= cancelled, 10)


def count(served: Served) -> float:
    return served.metrics()["hpc_dynamo_requests_cancelled_total"]


def sent(served: Served, body: dict[str, Any]) -> HTTPConnection:
    """Send a request without reading the response."""
    connection = served.connect()
    headers = {"Authorization": f"Bearer {served.key}"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    return connection


def test_cancelled_stream_stops_engine(served: Served) -> None:
    before = count(served)
    stream = served.client.completions.create(**ENDLESS, stream=True, extra_body=WITHOUT_END)
    for _, _ in zip(range(3), stream, strict=False):
        pass
    started(served)
    stream.close()
    freed(served, before + 1)


def test_cancelled_response_stops_engine(served: Served) -> None:
    before = count(served)
    connection = sent(served, ENDLESS | WITHOUT_END)
    started(served)
    connection.close()
    freed(served, before + 1)


async def test_cancelled_client_task_stops_engine(served: Served) -> None:
    async with served.asynchronous() as client:
        task = asyncio.create_task(client.completions.create(**ENDLESS, extra_body=WITHOUT_END))
        await asyncio.to_thread(started, served)
        task.cancel()
        await asyncio.wait([task])
    await asyncio.to_thread(freed, served, 0)


def test_many_cancellations_at_any_stage(served: Served) -> None:
    """Cancellation in the queue, during prefill or KV transfer, and later."""
    before = served.engines()
    connections = [
        sent(served, ENDLESS | WITHOUT_END | {"prompt": f"{i} " + "word " * 1500})
        for i in range(24)
    ]
    for connection in connections:
        connection.close()
    freed(served, 0)
    made = "vllm:generation_tokens_total"
    after = served.engines()
    assert sum(after[r][made] - before[r][made] for r in after) < 24 * 1000, "they went on"
    answer = served.client.completions.create(model=MODEL, prompt="still there?", max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
