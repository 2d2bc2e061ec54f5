"""Each obstacle ends a cut stream with an error, and the guide lists all of them."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from hpc_dynamo.config import Config, Role, Topology, TopologyKind
from hpc_dynamo.dispatch import WorkerFailed
from hpc_dynamo.dispatch.obstacles import NotContinuable, Obstacle
from hpc_dynamo.engines.vllm.pd_protocol import VllmPdProtocol
from hpc_dynamo.http import HttpRequest, HttpServer, ResponseWriter
from tests.support.cut_streams import MigratingClient, migrating

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
GUIDE = Path(__file__).resolve().parents[3] / "docs/guides/http-endpoint.md"
EVENTS = (b"content-type", b"text/event-stream")
Json = dict[str, Any]


def chunk(**delta: Any) -> Json:
    return {"id": "a", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def block(kind: str, **usage: int) -> list[Json]:
    """Return a message with the start of one block, and a text."""
    started = {"type": kind, "text": ""}
    return [
        {"type": "message_start", "message": {"id": "a", "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": started},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a b"}},
    ]


def response(kind: str) -> list[Json]:
    item = {"id": "i", "type": kind}
    return [
        {"type": "response.created", "response": {"id": "a"}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.output_text.delta", "delta": "a b"},
    ]


TEXT = [chunk(content="one two")]
TALK: Json = {"messages": [{"role": "user", "content": "x"}]}
IMAGE: Json = {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
TOOLS: Json = {"tools": [{"type": "function"}]}
GREEDY: Json = {"temperature": 0}
LONG = [chunk(content=Random(i).randbytes(60_000).hex()) for i in range(50)]
BLOCKS = [{"type": "text", "text": "x"}] * 2
MESSAGE, RESPONSE = TALK | {"max_tokens": 5}, {"input": "x"}

CASES: dict[str, tuple[Obstacle, str, Json, list[Json]]] = {
    "seed": (Obstacle.seed, CHAT, TALK | {"seed": 1}, TEXT),
    "tools of a chat": (Obstacle.tools, CHAT, TALK | TOOLS, TEXT),
    "tools of messages": (Obstacle.tools, MESSAGES, MESSAGE | TOOLS, block("text")),
    "tools of responses": (Obstacle.tools, RESPONSES, RESPONSE | TOOLS, response("message")),
    "n": (Obstacle.field, CHAT, TALK | {"n": 2}, TEXT),
    "penalty": (Obstacle.field, CHAT, TALK | {"presence_penalty": 1}, TEXT),
    "grammar": (Obstacle.field, CHAT, TALK | {"response_format": {"type": "json_object"}}, TEXT),
    "unknown field": (Obstacle.field, CHAT, TALK | {"what": 1}, TEXT),
    "thinking": (
        Obstacle.field, MESSAGES, MESSAGE | {"thinking": {"type": "disabled"}}, block("text"),
    ),
    "ignored field": (Obstacle.field, MESSAGES, MESSAGE | {"min_p": 0.1}, block("text")),
    "reasoning": (
        Obstacle.field, RESPONSES, RESPONSE | {"reasoning": {"effort": "low"}}, response("message"),
    ),
    "previous response": (
        Obstacle.field, RESPONSES, RESPONSE | {"previous_response_id": "a"}, response("message"),
    ),
    "image": (Obstacle.content, CHAT, IMAGE, TEXT),
    "image in a message": (Obstacle.content, MESSAGES, IMAGE, block("text")),
    "tool result": (
        Obstacle.content, RESPONSES, {"input": [{"type": "function_call_output"}]},
        response("message"),
    ),
    "several system blocks": (
        Obstacle.prompt, MESSAGES, MESSAGE | {"system": BLOCKS}, block("text"),
    ),
    "system message in the middle": (
        Obstacle.prompt, MESSAGES, {"messages": [{"role": "system", "content": "x"}]},
        block("text"),
    ),
    "another count of tokens": (
        Obstacle.prompt, MESSAGES, MESSAGE, block("text", input_tokens=7, output_tokens=0),
    ),
    "incomplete item": (
        Obstacle.prompt, RESPONSES,
        {"input": [{"role": "assistant", "content": "x", "status": "incomplete"}]},
        response("message"),
    ),
    "unreadable request": (Obstacle.prompt, MESSAGES, {"messages": 1}, block("text")),
    "stop and tokens": (
        Obstacle.stop_and_tokens, CHAT, TALK | {"stop": "x", "logprobs": True}, TEXT,
    ),
    "part of a stop string": (Obstacle.stop_begun, CHAT, TALK | {"stop": "two three"}, TEXT),
    "reasoning output": (Obstacle.parsed, CHAT, TALK, [chunk(reasoning="x")]),
    "partial tool call": (Obstacle.parsed, CHAT, TALK, [*TEXT, chunk(tool_calls=[{"index": 0}])]),
    "thinking block": (Obstacle.parsed, MESSAGES, MESSAGE, block("thinking")),
    "tool block": (Obstacle.parsed, MESSAGES, MESSAGE, block("tool_use")),
    "reasoning item": (Obstacle.parsed, RESPONSES, RESPONSE, response("reasoning")),
    "tool item": (Obstacle.parsed, RESPONSES, RESPONSE, response("function_call")),
    "length": (Obstacle.length, CHAT, TALK, LONG),
    "unreadable output": (Obstacle.unreadable, MESSAGES, MESSAGE, [{"type": "message_start"}]),
}  # fmt: skip


class BreakingEngine:
    """An engine whose streams break after `events`; those that continue send `continued`."""

    def __init__(self) -> None:
        self.events, self.continued = list[Json](), list[Json]()

    async def handle(self, request: HttpRequest, reply: ResponseWriter) -> None:
        if request.path == "/tokenize":
            reply.send(200, b'{"tokens": [1, 2, 3]}', [(b"content-type", b"application/json")])
            return
        reply.begin(200, [EVENTS])
        for event in self.continued if request.path == COMPLETIONS else self.events:
            reply.write(b"data: %b\n\n" % json.dumps(event).encode())
            await reply.drain()
        raise ConnectionError("the engine ends")


@pytest.fixture
async def engine() -> BreakingEngine:
    return BreakingEngine()


@pytest.fixture
async def client(engine: BreakingEngine) -> AsyncIterator[MigratingClient]:
    config = Config(topology=Topology(kind=TopologyKind.aggregated))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(HttpServer(engine.handle))
        port = await server.listen("127.0.0.1", 0)
        workers = [(Role.aggregated, f"http://127.0.0.1:{port}")] * 2
        yield await stack.enter_async_context(migrating(config, VllmPdProtocol(), workers, "key"))


@pytest.mark.parametrize(("obstacle", "path", "body", "sent"), CASES.values(), ids=CASES)
async def test_stream_ends_with_error(
    client: MigratingClient, engine: BreakingEngine, obstacle: Obstacle, path: str, body: Json,
    sent: list[Json],
) -> None:  # fmt: skip
    engine.events = sent
    with pytest.raises(WorkerFailed) as failed:
        await client.content(path, body)
    assert isinstance(failed.value.__cause__, NotContinuable), failed.value.__cause__
    assert failed.value.__cause__.obstacle is obstacle
    assert client.migrator.outcomes == {"impossible": 1}


async def test_other_text_after_the_end_is_a_failure(
    client: MigratingClient, engine: BreakingEngine
) -> None:
    """Two workers disagree where the text ends: nothing more is sent."""
    engine.events = [*block("text"), {"type": "content_block_stop", "index": 0}]
    engine.continued = [{"choices": [{"text": " b and more", "finish_reason": None}]}]
    with pytest.raises(WorkerFailed):
        await client.content(MESSAGES, MESSAGE | GREEDY)
    assert client.migrator.outcomes == {"failed": 1}


def test_each_obstacle_is_tried() -> None:
    assert {case[0] for case in CASES.values()} == set(Obstacle)


def test_guide_lists_the_obstacles() -> None:
    rows = [line.strip("| ").split(" | ") for line in GUIDE.read_text().splitlines()]
    listed = [row[0] for row in rows if row[1:] == ["error event"]]
    assert listed == [str(obstacle) for obstacle in Obstacle]
