"""Streams that are cut at each place continue as one unbroken answer, in all formats."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from hpc_dynamo.config import Config, Role, Topology, TopologyKind
from hpc_dynamo.dispatch import WorkerFailed
from hpc_dynamo.dispatch.chunk_converter import ChunkConverter
from hpc_dynamo.dispatch.continuation import Cut
from hpc_dynamo.dispatch.partial_answer import PartialAnswer, read_answer
from hpc_dynamo.dispatch.stream_formats import STREAM_FORMATS
from hpc_dynamo.engines.vllm.pd_protocol import VllmPdProtocol
from hpc_dynamo.http.sse import DONE_EVENT, encode_event
from tests.support.cut_streams import MigratingClient, migrating
from tests.support.local_simulator import KEY, MODEL, local_simulator

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
PROMPT = "Tell me about foxes."
TALK: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}]}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: TALK | {"max_tokens": 12},
    COMPLETIONS: {"prompt": PROMPT, "max_tokens": 12},
    MESSAGES: TALK | {"max_tokens": 12, "system": "Be brief."},
    RESPONSES: {"input": PROMPT, "max_output_tokens": 12, "instructions": "Be brief."},
}
STOP = {MESSAGES: "stop_sequences"}
PATHS = pytest.mark.parametrize("path", STREAM_FORMATS)


@pytest.fixture
async def client(request: pytest.FixtureRequest) -> AsyncIterator[MigratingClient]:
    config = Config(topology=Topology(kind=TopologyKind.aggregated))
    options = getattr(request, "param", ())
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(local_simulator(*options)) for _ in range(2)]
        engines = [(Role.aggregated, url) for url in urls]
        yield await stack.enter_async_context(migrating(config, VllmPdProtocol(), engines, KEY))


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    return BODIES[path] | {"model": MODEL, "temperature": 0} | fields


def ends(client: MigratingClient) -> list[int]:
    """Return the end of each event in the last stream."""
    return [match.end() for match in re.finditer(rb"\n\n", client.raw)]


@PATHS
async def test_cut_at_each_event(client: MigratingClient, path: str) -> None:
    body = body_of(path)
    whole = await client.whole(path, body)
    await client.content(path, body)
    last, *events = reversed(ends(client))
    assert len(events) >= 12
    for end in (last - 1, *events):
        await client.unbroken(path, body, whole, end)


@PATHS
async def test_cut_of_a_sampled_stream(client: MigratingClient, path: str) -> None:
    """The simulator ignores the temperature, so that even this text is the same."""
    body = body_of(path, temperature=0.7)
    whole = await client.whole(path, body)
    await client.content(path, body)
    for end in (ends(client)[4], *ends(client)[-5:-1]):
        await client.unbroken(path, body, whole, end)


@PATHS
async def test_cut_before_a_stop_string(client: MigratingClient, path: str) -> None:
    body = body_of(path)
    whole = await client.whole(path, body)
    words = text_of(path, whole).split(" ")
    stopped = body | {STOP.get(path, "stop"): [f"{words[5][1:]} {words[6][:2]}", "nothing"]}
    whole = await client.whole(path, stopped)
    assert text_of(path, whole) == " ".join(words[:6])[: -len(words[5]) + 1]
    await client.content(path, stopped)
    for end in ends(client)[:-1]:
        await client.unbroken(path, stopped, whole, end)


@PATHS
async def test_a_stream_that_kills_its_workers_ends_after_two(
    client: MigratingClient, path: str
) -> None:
    body = body_of(path)
    await client.content(path, body)
    # After one byte, the client does not send the request again on a new connection.
    for cuts in ((ends(client)[5], 500, 400, 400), (1, 500, 400, 400)):
        with pytest.raises(WorkerFailed) as failed:
            await client.content(path, body, *cuts)
        assert failed.value.deaths + len(client.cutter.after) >= 3
        assert client.cutter.after == [400, 400]


@PATHS
@pytest.mark.parametrize("client", [("--timing", "cpu-135m")], ids=["slow"], indirect=True)
async def test_client_that_leaves_during_a_continuation(client: MigratingClient, path: str) -> None:
    """The worker has its place again; the simulators check that no request is left."""
    sent = asyncio.create_task(client.content(path, body_of(path), 1500))
    await client.cutter.continued.wait()
    assert not client.migrator.outcomes
    sent.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sent
    await client.router.wait_idle()


@pytest.mark.parametrize("path", STREAM_FORMATS)
def test_events_in_pieces_of_any_size(path: str) -> None:
    """Pieces may end inside a UTF-8 character."""
    stream_format, text = STREAM_FORMATS[path], "日本語 🙂 é"
    chunks = [{"choices": [{"text": letter, "finish_reason": None}]} for letter in text]
    content = b"".join(map(encode_event, chunks)) + DONE_EVENT
    for at in range(len(content)):
        answer = PartialAnswer(head={"id": "a"})
        writer = stream_format.writer(answer, {})
        converter = ChunkConverter(answer, Cut(""), writer, prompt_tokens=1, output_tokens=0)
        events = converter.feed(content[:at]) + converter.feed(content[at:])
        assert read_answer(events, stream_format.add).text == text


@PATHS
@pytest.mark.parametrize("finish", ["length", "stop"])
def test_end_without_another_worker(path: str, finish: str) -> None:
    """The last token was sent, but not the reason why it is the last."""
    stream_format = STREAM_FORMATS[path]
    answer = PartialAnswer(head={"id": "a"})
    writer = stream_format.writer(answer, {})
    begun = writer.write([{"text": "one", "finish_reason": None}], None, {})
    sent = read_answer(begun, stream_format.add)
    sent.head = {"id": "a"}
    writer = stream_format.writer(sent, {})
    converter = ChunkConverter(sent, Cut("one"), writer, prompt_tokens=3, output_tokens=1)
    closed = converter.closing(finish=finish, usage=True)
    answer = read_answer(begun + closed, stream_format.add)
    assert answer.finished
    assert answer.usage_sent
    expected = {MESSAGES: {"stop": "end_turn", "length": "max_tokens"}}
    expected[RESPONSES] = {"stop": "completed", "length": "incomplete"}
    assert expected.get(path, {finish: finish})[finish].encode() in closed
    assert b"3" in closed


def text_of(path: str, whole: dict[str, Any]) -> str:
    if path == MESSAGES:
        return str(whole["content"][0]["text"])
    if path == RESPONSES:
        return str(whole["output"][0]["content"][0]["text"])
    choice = whole["choices"][0]
    return str(choice.get("text") or choice["message"]["content"])
