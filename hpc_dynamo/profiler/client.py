"""HTTP client that records when each token of a stream arrives."""

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
REQUEST_TIMEOUT_S = 1800.0


class _Details(msgspec.Struct):
    """Cached prompt tokens, if the engine reports them."""

    cached_tokens: int | None = None


class _TokenCounts(msgspec.Struct):
    """Token counts of a stream so far."""

    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    """An event of an OpenAI completion stream."""

    choices: list[msgspec.Raw] = []
    usage: _TokenCounts | None = None


@dataclass
class TimedStream:
    """A response sink that records arrival times (`perf_counter` seconds)."""

    sent_at: float = field(default_factory=perf_counter)
    cached_tokens: int | None = None  # as reported by the engine
    token_at: Sequence[float] = ()  # arrival of each token; several may arrive together
    congested = False

    def __post_init__(self) -> None:
        self._pieces = list[tuple[float, bytes]]()

    def write(self, data: bytes) -> None:
        self._pieces.append((perf_counter(), data))

    async def drain(self) -> None:
        """Never congested."""

    def read(self) -> None:
        """Parse the stream: events with the token count so far, or one token per event."""
        parser, times = EventParser(), list[float]()
        for at, piece in self._pieces:
            for data, _ in parser.feed(piece):
                if data and data != DONE:
                    event = msgspec.json.decode(data, type=_Event)
                    self._count(event, at, times)
        self.token_at = times

    def _count(self, event: _Event, at: float, times: list[float]) -> None:
        if event.choices:
            count = event.usage.completion_tokens if event.usage else len(times) + 1
            times += [at] * (count - len(times))
        if event.usage and event.usage.prompt_tokens_details:
            self.cached_tokens = event.usage.prompt_tokens_details.cached_tokens

    @property
    def start(self) -> bytes:
        return b"".join(piece for _, piece in self._pieces)[:200]

    @property
    def ttft_s(self) -> float:
        return self.token_at[0] - self.sent_at


def completion_body(model: str, prompt: Sequence[int], tokens: int) -> Body:
    """Return a request for exactly this many tokens."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


async def stream_completion(client: HttpClient, url: str, body: Body) -> TimedStream:
    """Return a stream after its end. Raises RequestFailed, OSError (includes TimeoutError)."""
    usage = {"include_usage": True, "continuous_usage_stats": True}
    streamed = body | {"stream": True, "stream_options": usage}
    content = msgspec.json.encode(streamed)
    timed = TimedStream()
    async with (
        asyncio.timeout(REQUEST_TIMEOUT_S),
        client.send("POST", url, PATH, content) as answer,
    ):
        if answer.status != 200:
            raise _request_failed(url, answer.status, await answer.read())
        await answer.relay(timed)
    timed.read()
    if not timed.token_at:
        raise RequestFailed(f"{url} streamed no token: {timed.start!r}", status=502)
    return timed


async def complete(client: HttpClient, url: str, body: Body) -> bytes:
    """Return a response that is not streamed. Raises like `stream_completion`."""
    async with (
        asyncio.timeout(REQUEST_TIMEOUT_S),
        client.send("POST", url, PATH, msgspec.json.encode(body)) as answer,
    ):
        content = await answer.read()
        if answer.status != 200:
            raise _request_failed(url, answer.status, content)
        return content


def _request_failed(url: str, status: int, content: bytes) -> RequestFailed:
    what = f"{url} answered {status}: {content[:200].decode(errors='replace')}"
    return RequestFailed(what, status=status, body=content)
