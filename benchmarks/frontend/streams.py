"""Load generator for streams: keeps a number of streams open until the time is over.

    python -m benchmarks.frontend.streams URL --key KEY --tokenizer FILE --kind shared
        --prompt-tokens 1200 --answer 200 --streams 64 --seconds 10

Prints a StreamStats record as JSON. Runs as a process of its own, so that its CPU seconds can be
subtracted. A token is an event with content; the usage at the end of each stream is also counted.
"""

import argparse
import asyncio
import json
import random
import re
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.common.workload import workload

CONTENT, EMPTY = re.compile(rb'"content": ?"'), re.compile(rb'"content": ?""')
USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
DONE, END = b"data: [DONE]", b"\r\n0\r\n\r\n"
SILENCE_S = 30.0  # silence of a stream that counts as an error


@dataclass(frozen=True)
class StreamStats:
    """Results of one run."""

    streams: int
    errors: int
    tokens: int  # events with content
    usage_tokens: int  # reported by the server
    reads: int  # reads with content: tokens / reads is the batch size
    seconds: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    cpu_s: float


class StreamLog:
    """Measurements of all clients."""

    def __init__(self) -> None:
        self.ttft_s, self.gaps_s = array("d"), array("d")
        self.streams = self.errors = self.tokens = self.usage_tokens = self.reads = 0


class StreamClient(asyncio.Protocol):
    """One connection with one stream at a time."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._over: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self.transport = cast(asyncio.Transport, transport)  # uvloop has its own types

    async def stream(self, request: bytes) -> None:
        """Send a request and read its response to the end. Raises ConnectionError."""
        self._over = asyncio.get_running_loop().create_future()
        self._rest, self._tokens, self._done = b"", 0, False
        self._last = time.perf_counter()
        self.transport.write(request)
        await self._over

    def connection_lost(self, exc: Exception | None) -> None:
        if self._over and not self._over.done():
            self._over.set_exception(exc or ConnectionError("closed before the end"))

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        if not self._tokens and data.startswith(b"HTTP/1.1 ") and data[9:12] != b"200":
            return self.transport.abort()
        end = data.rfind(b"\n\n") + 2
        self._rest = data[end:] if end > 1 else data
        if end > 1:
            self._events(data[:end])
        if self._done and data.endswith(END) and self._over and not self._over.done():
            self._log.streams += 1
            self._over.set_result(None)
        return None

    def _events(self, data: bytes) -> None:
        tokens = len(CONTENT.findall(data)) - len(EMPTY.findall(data))
        if tokens:
            self._count(tokens)
        self._done = self._done or DONE in data
        self._log.usage_tokens += sum(map(int, USAGE.findall(data)))

    def _count(self, tokens: int) -> None:
        """Count tokens of one read, which arrived together: the gaps between them are 0."""
        now, log = time.perf_counter(), self._log
        (log.gaps_s if self._tokens else log.ttft_s).append(now - self._last)
        log.gaps_s.extend((0.0,) * (tokens - 1))
        log.tokens += tokens
        log.reads += 1
        self._tokens, self._last = self._tokens + tokens, now


async def client(
    host: str, port: int, request: Callable[[], bytes], log: StreamLog, end: float
) -> None:
    """Run streams over one connection until `end`, over a new one after an error."""
    while time.perf_counter() < end:
        transport = None
        try:
            transport, protocol = await asyncio.get_running_loop().create_connection(
                lambda: StreamClient(log), host, port
            )
            while time.perf_counter() < end:
                async with asyncio.timeout(SILENCE_S):
                    await protocol.stream(request())
        except OSError:  # a failed connection, or an incomplete stream
            log.errors += 1
        finally:
            if transport:
                transport.abort()


async def run(url: str, streams: int, seconds: float, request: Callable[[], bytes]) -> StreamStats:
    """Run `streams` clients for `seconds`; streams in progress are read to their end."""
    where, log = urlsplit(url), StreamLog()
    assert where.hostname
    assert where.port
    began, cpu_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(client(where.hostname, where.port, request, log, began + seconds))
    took, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    ttft, gaps = sorted(log.ttft_s), sorted(log.gaps_s)
    return StreamStats(
        streams=log.streams,
        errors=log.errors,
        tokens=log.tokens,
        usage_tokens=log.usage_tokens,
        reads=log.reads,
        seconds=took,
        ttft_p50_ms=quantile(ttft, 0.50) * 1e3,
        ttft_p99_ms=quantile(ttft, 0.99) * 1e3,
        itl_p50_ms=quantile(gaps, 0.50) * 1e3,
        itl_p99_ms=quantile(gaps, 0.99) * 1e3,
        cpu_s=cpu_s,
    )


def quantile(ordered: Sequence[float], q: float) -> float:
    """Return the quantile `q` of sorted values; nan if there are none."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


def post(url: str, key: str, body: bytes) -> bytes:
    """Return a whole HTTP request for a chat completion."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
    head += f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    for name in ("--key", "--kind"):
        parser.add_argument(name, required=True)
    for name in ("--prompt-tokens", "--answer", "--streams"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    work = workload(args.kind, args.prompt_tokens, args.tokenizer, answer=args.answer, stream=True)
    draw = random.Random()
    with suppress(KeyboardInterrupt):
        found = uvloop.run(
            run(
                args.url,
                args.streams,
                args.seconds,
                lambda: post(args.url, args.key, work.body(draw)),
            )
        )
        print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
