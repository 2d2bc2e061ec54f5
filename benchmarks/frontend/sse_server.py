"""Fast fixed OpenAI responses with plain asyncio, as a backend for frontends under test.

    python -m benchmarks.frontend.sse_server PORT… [--step-s 0.02]

A request gets a fixed response of one token, or with `"stream": true` as many events as
`max_tokens`. As in an engine, each open stream gets one token per step. With --step-s 0 the next
step follows as soon as the sockets have accepted the last one.
"""

import argparse
import asyncio
import json
import re
from collections.abc import Callable
from typing import cast

import uvloop

CREATED = 1700000000
CHAT = {"id": "chatcmpl-0", "created": CREATED, "model": "m"}
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "bench"}]}
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
STREAM = re.compile(rb'"stream": ?true')
OK = b"HTTP/1.1 200 OK\r\nContent-Type: "
STREAM_HEAD = OK + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def compact(value: object) -> bytes:
    """Return JSON without spaces, as engines write it."""
    return json.dumps(value, separators=(",", ":")).encode()


def answer(value: object) -> bytes:
    """Return a whole HTTP response."""
    body = compact(value)
    return OK + b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def fixed_answer() -> dict[str, object]:
    """Return a chat completion of one token."""
    message = {"role": "assistant", "content": " word"}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    return {**CHAT, "object": "chat.completion", "choices": [choice], "usage": USAGE}


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    """Return one event of a stream as an HTTP chunk."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    value = {**CHAT, "object": "chat.completion.chunk", "choices": [choice]}
    return chunk(b"data: %s\n\n" % compact(value))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def last_events(tokens: int) -> bytes:
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    value = {**CHAT, "object": "chat.completion.chunk", "choices": [], "usage": usage}
    data = b"data: %s\n\n" % compact(value)
    return event({}, "length") + chunk(data) + chunk(b"data: [DONE]\n\n") + chunk(b"")


RENDERED = {"request_id": "chatcmpl-0", "token_ids": [1, 2, 3]}
ONE, LISTED, IDS = map(answer, (fixed_answer(), MODELS, RENDERED))
FIRST, TOKEN = event({"role": "assistant", "content": ""}), event({"content": " word"})


class Steps:
    """Clock of the engine: calls each member once per step."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._members: set[Callable[[], None]] = set()
        self._loop = asyncio.get_running_loop()

    def add(self, member: Callable[[], None]) -> None:
        if not self._members:
            self._loop.call_later(self._step_s, self._step)
        self._members.add(member)

    def remove(self, member: Callable[[], None]) -> None:
        self._members.discard(member)

    def _step(self) -> None:
        began = self._loop.time()
        for member in tuple(self._members):
            member()
        if self._members:
            self._loop.call_at(began + self._step_s, self._step)


class Connection(asyncio.Protocol):
    """Connection of one client, with one request at a time."""

    def __init__(self, steps: Steps) -> None:
        self._steps, self._buffer = steps, b""
        self._left = self._tokens = 0
        self._writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self._transport = cast(asyncio.Transport, transport)  # uvloop has its own types

    def connection_lost(self, exc: Exception | None) -> None:
        self._steps.remove(self._token)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = LENGTH.search(data, 0, end)
        if len(data) >= end + (int(length[1]) if length else 0):
            self._buffer = b""
            self._serve(data, end)

    def _serve(self, data: bytes, end: int) -> None:
        if data.startswith(b"GET"):
            self._transport.write(LISTED)
        elif b"/render" in data[:end]:  # vllm-router lets the engine tokenize
            self._transport.write(IDS)
        elif STREAM.search(data, end):
            wanted = TOKENS.search(data, end)
            self._left = self._tokens = int(wanted[1]) if wanted else 1
            self._transport.write(STREAM_HEAD + FIRST)
            self._steps.add(self._token)
        else:
            self._transport.write(ONE)

    def _token(self) -> None:
        if not self._writable:
            return
        self._left -= 1
        if self._left:
            self._transport.write(TOKEN)
        else:
            self._steps.remove(self._token)
            self._transport.write(TOKEN + last_events(self._tokens))


async def serve(ports: list[int], step_s: float) -> None:
    """Listen on 127.0.0.1 until cancelled."""
    steps = Steps(step_s)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        for port in ports:
            server = await loop.create_server(
                lambda: Connection(steps), "127.0.0.1", port, backlog=1024
            )
            group.create_task(server.serve_forever())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ports", type=int, nargs="+")
    parser.add_argument("--step-s", type=float, default=0.0)
    args = parser.parse_args()
    uvloop.run(serve(args.ports, args.step_s))


if __name__ == "__main__":
    main()
