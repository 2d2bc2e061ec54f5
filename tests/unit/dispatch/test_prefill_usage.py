"""The usage of a response counts the tokens that the prefill worker found in its cache."""

import asyncio
import json
from typing import Any

import pytest

from hpc_dynamo.dispatch.prefill_usage import (
    ResponseWithPrefillUsage,
    prompt_usage,
    with_prompt_usage,
)
from hpc_dynamo.http import ByteSink

PREFILL = {
    "prompt_tokens": 40,
    "completion_tokens": 1,
    "prompt_tokens_details": {"cached_tokens": 32},
}
DECODE = {
    "prompt_tokens": 40,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 0},
}
BOTH = DECODE | {"prompt_tokens_details": {"cached_tokens": 32}}
CHUNK = b'data: {"choices":[{"text":"\\"usage\\":{}"}],"usage":null}\n\n'
DONE = b"data: [DONE]\n\n"


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def event(usage: Any) -> bytes:
    return b"data: %b\n\n" % compact({"choices": [], "usage": usage})


def edited(content: Any, prefill: Any) -> Any:
    return json.loads(with_prompt_usage(compact(content), prompt_usage(compact(prefill))))


@pytest.mark.parametrize(
    ("decode", "prefill", "expected"),
    [
        (DECODE, PREFILL, BOTH),
        (DECODE | {"prompt_tokens_details": None}, PREFILL, BOTH),
        (
            {"input_tokens": 40, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 5},
            {"input_tokens": 40, "input_tokens_details": {"cached_tokens": 32}, "output_tokens": 1},
            {"input_tokens": 40, "input_tokens_details": {"cached_tokens": 32}, "output_tokens": 5},
        ),
        # /v1/messages
        (
            {"input_tokens": 40, "output_tokens": 5},
            {"input_tokens": 8, "output_tokens": 1, "cache_read_input_tokens": 32},
            {"input_tokens": 8, "output_tokens": 5, "cache_read_input_tokens": 32},
        ),
        (
            {"output_tokens": 5},
            {"input_tokens": 8, "cache_read_input_tokens": 32},
            {"output_tokens": 5},
        ),
        (DECODE, None, DECODE),
        (None, PREFILL, None),
    ],
)
def test_fields_about_prompt_are_those_of_prefill_worker(
    decode: Any, prefill: Any, expected: Any
) -> None:
    answer = {"id": "a", "usage": prefill}
    assert edited({"id": "b", "usage": decode}, answer) == {"id": "b", "usage": expected}
    for holder in ("response", "message"):
        content = {"type": "x", holder: {"usage": decode}}
        assert edited(content, answer) == {"type": "x", holder: {"usage": expected}}


@pytest.mark.parametrize("content", [b"", b"{", b'"usage":{', b"[1]", b'{"usage":{"a":1}', b"\xff"])
def test_other_content_is_unchanged(content: bytes) -> None:
    assert prompt_usage(content) == {}
    assert with_prompt_usage(content, prompt_usage(compact({"usage": PREFILL}))) == content


class Pieces:
    """Response that arrives in pieces; before piece `gate` the prefill worker responds."""

    def __init__(self, pieces: list[bytes], gate: int, prefill: "asyncio.Future[bytes]") -> None:
        self.headers = {"content-type": "text/event-stream; charset=utf-8"}
        self._pieces, self._gate, self._prefill = pieces, gate, prefill

    async def read(self) -> bytes:
        return b"".join(self._pieces)

    async def relay(self, sink: ByteSink) -> None:
        for i, piece in enumerate(self._pieces):
            if i == self._gate:
                self._prefill.set_result(compact({"usage": PREFILL}))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            sink.write(piece)


class Sink:
    """ByteSink that keeps the pieces."""

    congested = False

    def __init__(self) -> None:
        self.pieces = list[bytes]()

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    async def drain(self) -> None: ...


async def relayed(pieces: list[bytes], gate: int) -> list[bytes]:
    response = asyncio.get_running_loop().create_future()

    async def prefill() -> bytes:
        content: bytes = await response
        return content

    async with asyncio.TaskGroup() as tasks:
        task, sink = tasks.create_task(prefill()), Sink()
        await ResponseWithPrefillUsage(Pieces(pieces, gate, response), task).relay(sink)
        task.cancel()
    return sink.pieces


STREAM = CHUNK + CHUNK + event(DECODE) + DONE


async def test_stream_in_any_pieces_has_prefill_usage() -> None:
    expected = STREAM.replace(event(DECODE), event(BOTH))
    for size in (1, 2, 7, 50, len(STREAM)):
        pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
        assert b"".join(await relayed(pieces, 0)) == expected


async def test_events_without_usage_do_not_wait_for_prefill_worker() -> None:
    pieces = [CHUNK, CHUNK, event(DECODE), DONE]
    assert await relayed(pieces, 3) == [CHUNK, CHUNK, event(BOTH) + DONE]


async def test_failed_prefill_worker_leaves_stream_unchanged() -> None:
    assert b"".join(await relayed([CHUNK, event(DECODE), DONE], 9)) == CHUNK + event(DECODE) + DONE
