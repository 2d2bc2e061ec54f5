"""Requests for several samples, which SGLang's workers receive as several requests."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from aiohttp import web

from hpc_dynamo.dispatch import EngineRequest, IncomingResponse
from hpc_dynamo.dispatch.fan_out import fan_out, request_for_sample
from hpc_dynamo.dispatch.merge import EventMerger, merge
from hpc_dynamo.engines.sglang.pd_protocol import SglangPdProtocol
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import Lease, RoutingRequest
from tests.unit.dispatch.test_dispatch import SOON_S, Body, House, Reply, Sender, refusing, text

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1, "other": None},
    "reasoning_tokens": 1,
}


def read(answer: Body) -> dict[str, msgspec.Raw]:
    """Parse a body as the dispatcher does."""
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in answer.items()}


def answer(name: str, texts: list[str], usage: Body | None = USAGE) -> Body:
    choices = [{"index": i, "text": t, "finish_reason": "stop"} for i, t in enumerate(texts)]
    return {"id": name, "created": 1, "model": "m", "choices": choices, "usage": usage}


def test_merge_numbers_choices_by_prompt() -> None:
    parts = [answer("a", ["p0 s0", "p1 s0"]), answer("b", ["p0 s1", "p1 s1"])]
    merged = json.loads(merge([read(part) for part in parts]))
    assert merged["id"] == "a"
    assert [c["text"] for c in merged["choices"]] == ["p0 s0", "p0 s1", "p1 s0", "p1 s1"]
    assert [c["index"] for c in merged["choices"]] == [0, 1, 2, 3]
    assert merged["choices"][1]["finish_reason"] == "stop"


def test_merge_counts_prompt_tokens_once() -> None:
    merged = json.loads(merge([read(answer(name, ["x"])) for name in "abc"]))
    assert merged["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 9,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3, "other": None},
        "reasoning_tokens": 3,
    }


@pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": None}])
def test_merge_accepts_responses_without_usage(usage: Body | None) -> None:
    merged = json.loads(merge([read(answer("a", ["x"], usage)), read(answer("b", ["y"], usage))]))
    assert [c["text"] for c in merged["choices"]] == ["x", "y"]
    assert merged["usage"] == usage


@pytest.mark.parametrize(
    ("seed", "seeds"), [(5, [5, 6, 7]), (-1, [-1, 0, 1]), (None, [None] * 3), ("x", ["x"] * 3)]
)
@pytest.mark.parametrize("raw", [True, False])
def test_each_sample_gets_its_own_seed(seed: Any, seeds: list[Any], raw: bool) -> None:
    body: Body = {"prompt": "p", "n": 3, "best_of": 3, "seed": seed, "rid": "r"}
    work = EngineRequest("/", b"", read(body) if raw else body, RoutingRequest(), (), 3)
    bodies = [json.loads(request_for_sample(work, sample).content) for sample in range(3)]
    assert [b["seed"] for b in bodies] == seeds
    assert [b.get("rid") for b in bodies] == ["r", None, None]
    assert not any("n" in b or "best_of" in b for b in bodies)


def chunk(name: str, *choices: Body, **more: Any) -> bytes:
    event = {"id": name, "created": 1, "model": "m", "choices": choices, **more}
    return b"data: %b\n\n" % json.dumps(event).encode()


def events(stream: bytes) -> list[Any]:
    rows = [row.removeprefix(b"data: ") for row in stream.split(b"\n\n") if row]
    return [json.loads(row) if row != b"[DONE]" else "[DONE]" for row in rows]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_event_merger_accepts_pieces_of_any_size(size: int) -> None:
    own = [
        b": ping\n\n"
        + chunk(name, {"index": 0, "delta": {"role": "assistant"}})
        + chunk(name, {"index": 0, "delta": {"content": f"é {name}"}}).replace(b"\n", b"\r\n")
        + chunk(name, {"index": 0, "delta": {}, "finish_reason": "stop"})
        + chunk(name, usage=USAGE)
        + b"data: [DONE]\n\n"
        for name in "ab"
    ]
    merger, out = EventMerger(2), b""
    for start in range(0, max(map(len, own)), size):
        for sample, stream in enumerate(own):
            piece, error = merger.feed(sample, stream[start : start + size])
            out += piece
            assert not error
    found = events((out + merger.closing()).replace(b": ping\n\n", b""))
    assert found.pop() == "[DONE]"
    last = found.pop()
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 6)
    assert {event["id"] for event in [*found, last]} <= {"a", "b"}
    assert len({event["id"] for event in found}) == 1
    choices = [event["choices"][0] for event in found]
    assert [c["index"] for c in choices if "role" in c["delta"]].count(0) == 1
    texts = {c["index"]: c["delta"]["content"] for c in choices if "content" in c["delta"]}
    assert texts == {0: "é a", 1: "é b"}


def test_event_merger_without_usage_adds_none() -> None:
    merger = EventMerger(2)
    merger.feed(0, chunk("a", {"index": 0, "text": "x"}) + b"data: [DONE]\n\n")
    assert merger.closing() == b"data: [DONE]\n\n"


# HTTP tests with one prefill and one decode worker.


@pytest.fixture
async def rooms() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(stack, SglangPdProtocol())


class Client:
    """Response sink that records the response."""

    def __init__(self) -> None:
        self.content = b""
        self.type = ""
        self.congested = False

    @property
    def started(self) -> bool:
        return bool(self.content)

    def write(self, data: bytes) -> None:
        self.content += data

    async def drain(self) -> None:
        pass

    async def receive(self, answer: IncomingResponse, lease: Lease) -> None:
        self.type = answer.headers["content-type"]
        lease.report_first_token()
        if self.type.startswith("text/event-stream"):
            await answer.relay(self)
        else:
            self.content = await answer.read()
        lease.report_progress(1)


async def ask(dispatcher: Sender, body: Body, samples: int) -> Client:
    """Send `body` as the endpoint does, parsed one level deep."""
    client, content = Client(), json.dumps(body).encode()
    work = EngineRequest("/v1/completions", content, read(body), RoutingRequest(), (), samples)
    async with asyncio.timeout(SOON_S):
        await dispatcher.dispatcher.run(work, client)
    return client


async def counted(body: Body) -> web.Response:
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    return web.json_response(answer("x", [f"{p} {body.get('seed')}" for p in prompts]))


async def test_fan_out_gives_each_sample_its_own_room(rooms: House) -> None:
    dispatcher, prefill, decode = await rooms.split(text, counted)
    body = {"prompt": ["p", "q"], "n": 3, "seed": 4}
    client = await ask(dispatcher, body, 3)
    found = json.loads(client.content)
    assert [c["text"] for c in found["choices"]] == ["p 4", "p 5", "p 6", "q 4", "q 5", "q 6"]
    assert found["usage"]["completion_tokens"] == 9
    assert len({b["bootstrap_room"] for b in decode.bodies}) == 3
    assert not any("n" in b for b in (*prefill.bodies, *decode.bodies))
    assert [m.active for m in dispatcher.workers] == [0, 0]


def streaming(*pieces: bytes, then: asyncio.Event | None = None) -> Reply:
    async def reply(body: Body) -> web.Response:
        return web.Response(body=b"".join(pieces), content_type="text/event-stream")

    return reply


STREAM = {"prompt": "p", "n": 2, "stream": True}


async def test_fan_out_merges_streams(rooms: House) -> None:
    own = (chunk("x", {"index": 0, "text": "hi"}), chunk("x", usage=USAGE), b"data: [DONE]\n\n")
    dispatcher, *_ = await rooms.split(text, streaming(*own))
    client = await ask(dispatcher, STREAM, 2)
    *first, last, done = events(client.content)
    assert sorted(event["choices"][0]["index"] for event in first) == [0, 1]
    assert (last["usage"]["completion_tokens"], done) == (6, "[DONE]")
    assert client.type.startswith("text/event-stream")


@pytest.mark.parametrize("said", [b'{"error": {"message": "broken"}}', b'{"message": "broken"}'])
async def test_error_event_of_one_stream_fails_request(rooms: House, said: bytes) -> None:
    dispatcher, *_ = await rooms.split(text, streaming(b"data: " + said + b"\n\ndata: [DONE]\n\n"))
    with pytest.raises(RequestFailed, match="broken") as failed:
        await ask(dispatcher, STREAM, 2)
    assert failed.value.body == said


async def test_error_of_one_sample_cancels_the_others(rooms: House) -> None:
    cancelled = asyncio.Event()

    async def second_refused(body: Body) -> web.Response:
        if body["seed"] == 1:
            return await refusing(400)(body)
        try:
            await asyncio.sleep(SOON_S)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return web.Response()

    dispatcher, *_ = await rooms.split(text, second_refused)
    with pytest.raises(RequestFailed) as failed:
        await ask(dispatcher, {"prompt": "p", "n": 3, "seed": 0}, 3)
    assert (failed.value.status, failed.value.body) == (400, b'{"error": "so it is"}')
    async with asyncio.timeout(SOON_S):
        await cancelled.wait()
    assert [m.active for m in dispatcher.workers] == [0, 0]


async def test_client_disconnect_cancels_all_samples(rooms: House) -> None:
    left = asyncio.Semaphore(0)

    async def endless(body: Body) -> web.Response:
        try:
            await asyncio.sleep(SOON_S)
        except asyncio.CancelledError:
            left.release()
            raise
        return web.Response()

    dispatcher, _, decode = await rooms.split(text, endless)
    asking = asyncio.create_task(ask(dispatcher, STREAM, 2))
    await decode.has(2)
    asking.cancel()
    async with asyncio.timeout(SOON_S):
        await left.acquire()
        await left.acquire()
    assert [m.active for m in dispatcher.workers] == [0, 0]


@pytest.mark.parametrize("body", [{"prompt": "p"}, STREAM])
async def test_unmergeable_response_is_502(rooms: House, body: Body) -> None:
    dispatcher, *_ = await rooms.split(text, text)
    with pytest.raises(RequestFailed) as failed:
        await ask(dispatcher, body, 2)
    assert failed.value.status == 502


@pytest.mark.parametrize(
    ("samples", "size", "message"),
    [(129, 0, "n=129: at most 128"), (128, 140_000, "at most 16 MiB together")],
)
async def test_too_many_samples_are_rejected(samples: int, size: int, message: str) -> None:
    async def nobody(work: EngineRequest, taker: object) -> None:
        raise AssertionError("sent")

    content, body = b"x" * size, {"n": samples}
    work = EngineRequest("/v1/completions", content, body, RoutingRequest(), (), samples)
    with pytest.raises(RequestFailed, match=message) as failed:
        await fan_out(nobody, work, Client())
    assert failed.value.status == 400
