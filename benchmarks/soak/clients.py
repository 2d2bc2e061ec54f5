"""Load of the soak benchmark: clients, some of which disconnect."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.common.workload import workload
from benchmarks.frontend.streams import DONE, USAGE
from hpc_dynamo.http import HttpClient

PROMPT, STREAMED, WHOLE = 300, 50, 16  # tokens of a prompt, a streamed and a whole response
CLIENTS = 64  # concurrent clients of the closed loop
ANSWER_S = 60.0
RETRIES, BACKOFF_S = 2, 0.5  # as the official OpenAI client has them
RETRIED = 503
MAX_IN_FLIGHT = 4096  # more requests in progress mean that the job cannot keep up

Bodies = Callable[[bool], bytes]
"""Creates the body of a request, streaming or not."""


class StreamReader:
    """ByteSink that calls `first` for the first bytes and keeps the end of a response."""

    congested = False

    def __init__(self, first: Callable[[], None]) -> None:
        self._first, self.end = first, b""

    def write(self, data: bytes) -> None:
        if not self.end:
            self._first()
        self.end = (self.end + data)[-800:]

    async def drain(self) -> None:
        """Return at once: the sink is never congested."""


class LoadClients:
    """Clients of the load, with the latencies since the last sample."""

    def __init__(self, http: HttpClient, url: str, bodies: Bodies, leave: float) -> None:
        self._http, self._url, self._bodies, self._leave = http, url, bodies, leave
        self.sent = self.answered = self.disconnected = self.in_flight = self.retries = 0
        self.errors, self.first_error = Counter[str](), ""
        self._usual_s = {False: 0.01, True: 0.01}  # mean response time by stream
        self.reset_samples()

    def reset_samples(self) -> None:
        """Clear the latencies of the last sample."""
        self.whole_s, self.stream_s, self.ttft_s = list[float](), list[float](), list[float]()

    async def send_one(self) -> None:
        """Send one request."""
        self.sent, self.in_flight = self.sent + 1, self.in_flight + 1
        stream, leaves = random.random() < 0.5, self._shall_leave()
        limit_s = random.uniform(0, self._usual_s[stream]) if leaves else ANSWER_S
        patience = asyncio.timeout(limit_s)
        try:
            async with patience:
                await self._ask_again(stream)
        except OSError as e:  # includes TimeoutError
            if leaves and patience.expired():
                self.disconnected += 1
            else:
                self._fail(type(e).__name__, str(e))
        finally:
            self.in_flight -= 1

    def _shall_leave(self) -> bool:
        """Return True if the next client should disconnect. Some get their response before that."""
        return self.disconnected < self._leave * self.sent and random.random() < 3 * self._leave

    async def _ask_again(self, stream: bool) -> None:
        """Send a request, again if the connection or the job fails at its start."""
        for attempt in range(RETRIES):
            if await self._ask(stream, last=False):
                return
            self.retries += 1
            await asyncio.sleep(BACKOFF_S * 2**attempt)
        await self._ask(stream, last=True)

    async def _ask(self, stream: bool, *, last: bool) -> bool:
        """Send a request. Return False if it may be sent again, unless it is the `last` time."""
        began, seen = time.perf_counter(), list[float]()
        ear = StreamReader(lambda: seen.append(time.perf_counter() - began))
        body = self._bodies(stream)
        try:
            async with self._http.send("POST", self._url, "/v1/chat/completions", body) as answer:
                await answer.relay(ear)
        except ConnectionError:
            if last or seen:
                raise
            return False
        if not last and answer.status == RETRIED:
            return False
        if answer.status != 200:
            return self._fail(f"status {answer.status}", ear.end.decode(errors="replace"))
        said = USAGE.findall(ear.end)
        if said != [b"%d" % (STREAMED if stream else WHOLE)] or (stream and DONE not in ear.end):
            return self._fail("not whole", ear.end.decode(errors="replace"))
        took_s = time.perf_counter() - began
        (self.stream_s if stream else self.whole_s).append(took_s)
        self.ttft_s += seen if stream else ()
        self._usual_s[stream] += 0.05 * (took_s - self._usual_s[stream])
        self.answered += 1
        return True

    def _fail(self, kind: str, text: str) -> bool:
        self.errors[kind] += 1
        self.first_error = self.first_error or f"{kind}: {text[-300:]}"
        return True

    async def closed_loop(self, seconds: float) -> float:
        """Run CLIENTS that each wait for their response; return the responses per second."""

        async def ask() -> None:
            while time.perf_counter() < began + seconds:
                await self.send_one()

        began, before = time.perf_counter(), self.answered
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(ask())
        return (self.answered - before) / (time.perf_counter() - began)

    async def open_loop(self, rate_hz: float, seconds: float) -> None:
        """Send requests at random times with a mean rate, independent of responses."""
        due = began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while (due := due + random.expovariate(rate_hz)) < began + seconds:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if self.in_flight < MAX_IN_FLIGHT:
                    group.create_task(self.send_one())
                else:
                    self._fail("not sent", f"{MAX_IN_FLIGHT} requests are in progress")


def bodies(tokenizer: Path) -> Bodies:
    """Return a function that creates request bodies; half of the prompts share a prefix."""
    draw, kinds = random.Random(), ("shared", "unique")
    made = {
        stream: [workload(k, PROMPT, tokenizer, answer=n, stream=stream) for k in kinds]
        for stream, n in ((True, STREAMED), (False, WHOLE))
    }
    return lambda stream: draw.choice(made[stream]).body(draw)
