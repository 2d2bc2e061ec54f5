"""What a client hears of one worker's streams: when which token came."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import msgspec

from hpc_dynamo.engines import Body
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import HttpClient
from hpc_dynamo.http.sse import DONE, EventParser

PATH = "/v1/completions"
LONGEST_S = 1800.0  # of one request


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None


@dataclass
class TimedStream:
    """A sink that remembers when each piece came in (`perf_counter` seconds)."""

    sent_at: float = field(default_factory=perf_counter)
    cached_tokens: int | None = None  # as the engine says, once all is read
    token_at: Sequence[float] = ()  # of each token; some may come together
    congested = False

    def __post_init__(self) -> None:
        self._pieces = list[tuple[float, bytes]]()

    def write(self, data: bytes) -> None:
        self._pieces.append((perf_counter(), data))

    async def drain(self) -> None:
        """Never congested."""

    def read(self) -> None:
        """Understand what came: events with the count of tokens so far, or a token each."""
        parser, found = EventParser(), list[float]()
        for at, piece in self._pieces:
            for data, _ in parser.feed(piece):
                if data and data != DONE:
                    event = msgspec.json.decode(data, type=_Event)
                    self._count(event, at, found)
        self.token_at = found

    def _count(self, event: _Event, at: float, found: list[float]) -> None:
        if event.choices:
            so_far = event.usage.completion_tokens if event.usage else len(found) + 1
            found += [at] * (so_far - len(found))
        if event.usage and event.usage.prompt_tokens_details:
            self.cached_tokens = event.usage.prompt_tokens_details.cached_tokens

    @property
    def start(self) -> bytes:
        return b"".join(piece for _, piece in self._pieces)[:200]

    @property
    def ttft_s(self) -> float:
        return self.token_at[0] - self.sent_at


def completion_body(model: str, prompt: Sequence[int], tokens: int) -> Body:
    """A request for exactly so many tokens."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


async def stream_completion(client: HttpClient, url: str, asked: Body) -> TimedStream:
    """Hear an answer to its end. Raises RequestFailed, OSError (a TimeoutError is one)."""
    counted = {"include_usage": True, "continuous_usage_stats": True}
    streamed = asked | {"stream": True, "stream_options": counted}
    content = msgspec.json.encode(streamed)
    heard = TimedStream()
    async with asyncio.timeout(LONGEST_S), client.send("POST", url, PATH, content) as answer:
        if answer.status != 200:
            raise _refused(url, answer.status, await answer.read())
        await answer.relay(heard)
    heard.read()
    if not heard.token_at:
        raise RequestFailed(f"{url} streamed no token: {heard.start!r}", status=502)
    return heard


async def complete(client: HttpClient, url: str, asked: Body) -> bytes:
    """An answer in one piece. Raises as `stream` does."""
    async with (
        asyncio.timeout(LONGEST_S),
        client.send("POST", url, PATH, msgspec.json.encode(asked)) as answer,
    ):
        content = await answer.read()
        if answer.status != 200:
            raise _refused(url, answer.status, content)
        return content


def _refused(url: str, status: int, said: bytes) -> RequestFailed:
    what = f"{url} answered {status}: {said[:200].decode(errors='replace')}"
    return RequestFailed(what, status=status, body=said)
