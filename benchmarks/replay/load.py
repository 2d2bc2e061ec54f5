"""The load: sends each request at its time (open loop) and records its response."""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Sequence

import msgspec

from benchmarks.frontend.streams import DONE, USAGE
from benchmarks.replay.trace import Request
from hpc_dynamo.http import HttpClient

TEXT = re.compile(rb'"text": ?"(?!")')  # matches events with text
CACHED = re.compile(rb'"cached_tokens": ?(\d+)')
REQUEST_TIMEOUT_S = 300.0
PATH = "/v1/completions"


class Seen(msgspec.Struct):
    """Result of one request. Seconds are real time since it was due; `error` is "" on success."""

    prompt: int
    answer: int
    due_s: float  # from the start of the load
    late_s: float = 0.0  # delay of the client
    ttft_s: float = 0.0
    end_s: float = 0.0
    gaps_s: list[float] = msgspec.field(default_factory=list)  # between pieces of the response
    cached: int | None = None  # cached prompt tokens, if the usage has them
    error: str = ""

    @property
    def itl_s(self) -> float:
        """Return the mean time between two tokens."""
        return (self.end_s - self.ttft_s) / max(1, self.answer - 1)


class Ear:
    """Sink that records the pieces of one response, see http.ByteSink."""

    congested = False

    def __init__(self, seen: Seen, due: float) -> None:
        self._seen, self._due, self._rest = seen, due, b""
        self.end = b""  # last bytes of the response

    def write(self, data: bytes) -> None:
        data = self._rest + data
        cut = data.rfind(b"\n\n") + 2
        whole, self._rest = (data[:cut], data[cut:]) if cut > 1 else (b"", data)
        self.end = (self.end + whole)[-2000:]
        if pieces := len(TEXT.findall(whole)):
            self._count(pieces)

    def _count(self, pieces: int) -> None:
        """Count the pieces of one read, which arrived at the same time: their gaps are 0."""
        now, seen = time.perf_counter() - self._due, self._seen
        if seen.ttft_s:
            seen.gaps_s.append(now - seen.end_s)
        else:
            seen.ttft_s = now
        seen.gaps_s.extend((0.0,) * (pieces - 1))
        seen.end_s = now

    async def drain(self) -> None:
        """Return at once: the sink is never congested."""


async def replay(
    http: HttpClient,
    url: str,
    requests: Sequence[Request],
    bodies: Sequence[bytes],
    done: Callable[[Seen], None],
) -> list[Seen]:
    """Send all requests; `done` is called when each ends."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = list[asyncio.Task[Seen]]()
        for request, body in zip(requests, bodies, strict=True):
            due = began + request.due_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(group.create_task(_counted(ask(http, url, request, body, due), done)))
    return [task.result() for task in tasks]


async def _counted(asked: Coroutine[None, None, Seen], done: Callable[[Seen], None]) -> Seen:
    seen = await asked
    done(seen)
    return seen


async def ask(http: HttpClient, url: str, request: Request, body: bytes, due: float) -> Seen:
    """Send one request and read its response until its end or error."""
    late_s = max(0.0, time.perf_counter() - due)
    seen = Seen(request.prompt, request.answer, request.due_s, late_s)
    ear = Ear(seen, due)
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S), http.send("POST", url, PATH, body) as answer:
            await answer.relay(ear)
            seen.error = "" if answer.status == 200 else f"status {answer.status}"
    except OSError as e:  # includes TimeoutError
        seen.error = f"{type(e).__name__} {e}".strip()
    if not seen.error and (DONE not in ear.end or USAGE.findall(ear.end) != [b"%d" % seen.answer]):
        seen.error = f"incomplete: {ear.end[-300:].decode(errors='replace')}"
    if told := CACHED.findall(ear.end):
        seen.cached = int(told[-1])
    return seen
