"""What a client hears of one worker's streams: when which token came."""

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import msgspec

from hpc_dynamo.engines import Body
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import Client

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
class Heard:
    """A sink that remembers when each piece came in (`perf_counter` seconds)."""

    sent_at: float = field(default_factory=perf_counter)
    cached_tokens: int | None = None  # as the engine says, once all is read
    token_at: Sequence[float] = ()  # of each token; some may come together
    congested = False

    def __post_init__(self) -> None:
        self._content = bytearray()
        self._ends, self._times = list[int](), list[float]()

    def write(self, data: bytes) -> None:
        self._content += data
        self._ends.append(len(self._content))
        self._times.append(perf_counter())

    async def drain(self) -> None:
        """Never congested."""

    def read(self) -> None:
        """Understand what came: events with the count of tokens so far, or a token each."""
        end, found = 0, list[float]()
        for part in bytes(self._content).split(b"\n\n")[:-1]:
            end += len(part) + 2
            if not part.startswith(b"data: {"):  # a comment, or the end
                continue
            event = msgspec.json.decode(part[6:], type=_Event)
            if event.choices:
                so_far = event.usage.completion_tokens if event.usage else len(found) + 1
                at = self._times[bisect_left(self._ends, end)]
                found += [at] * (so_far - len(found))
            if event.usage and event.usage.prompt_tokens_details:
                self.cached_tokens = event.usage.prompt_tokens_details.cached_tokens
        self.token_at = found

    @property
    def start(self) -> bytes:
        return bytes(self._content[:200])

    @property
    def ttft_s(self) -> float:
        return self.token_at[0] - self.sent_at


def body(model: str, prompt: Sequence[int], tokens: int) -> Body:
    """A request for exactly so many tokens."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


async def stream(client: Client, url: str, asked: Body) -> Heard:
    """Hear an answer to its end. Raises RequestFailed, OSError (a TimeoutError is one)."""
    counted = {"include_usage": True, "continuous_usage_stats": True}
    streamed = asked | {"stream": True, "stream_options": counted}
    content = msgspec.json.encode(streamed)
    heard = Heard()
    async with asyncio.timeout(LONGEST_S), client.send("POST", url, PATH, content) as answer:
        if answer.status != 200:
            raise _refused(url, answer.status, await answer.read())
        await answer.relay(heard)
    heard.read()
    if not heard.token_at:
        raise RequestFailed(f"{url} streamed no token: {heard.start!r}", status=502)
    return heard


async def whole(client: Client, url: str, asked: Body) -> bytes:
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
