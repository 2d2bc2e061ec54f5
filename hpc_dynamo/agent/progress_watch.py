"""Watches that a ready engine makes progress; see hang_detector."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hpc_dynamo.agent.hang_detector import HangDetector, is_computing
from hpc_dynamo.agent.probe import serves_token
from hpc_dynamo.engines import Body
from hpc_dynamo.engines.adapter import MetricNames
from hpc_dynamo.http import MAX_REPORT_BYTES, HttpClient
from hpc_dynamo.process.session import SessionUsage

COUNTERS_TIMEOUT_S = 10.0


async def _unknown_usage() -> SessionUsage | None:
    return None


async def _listens() -> bool:
    return True


@dataclass(frozen=True)
class WatchedEngine:
    """An engine and the requests that only it serves; see probe.serves_token.

    `usage` returns None if the engine's processes are not known. `listens` returns False if the
    engine does not have its port now; then nothing is sent there.
    """

    url: str
    model: str
    fields: Body
    metrics: MetricNames
    usage: Callable[[], Awaitable[SessionUsage | None]] = _unknown_usage
    listens: Callable[[], Awaitable[bool]] = _listens


class ProgressWatch:
    """Watch of one engine. `asleep` is set while the engine sleeps."""

    def __init__(self, http: HttpClient, engine: WatchedEngine, timeout_s: float) -> None:
        self._http, self._engine = http, engine
        self._detector = HangDetector(timeout_s)
        self._names = progress_names(engine.metrics)
        self._progress, self._progress_at = asyncio.Event(), time.monotonic()
        self.asleep = False

    async def wait_for_hang(self) -> str:
        """Return what happened, once the engine hangs."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in (self._read(), self._send_canaries())]
            try:
                await self._count_time()
            finally:
                for task in tasks:
                    task.cancel()
        quiet_s, limit_s = time.monotonic() - self._progress_at, self._detector.limit_s
        signs = "its token counters stand still and it does not answer a request for one token"
        return f"hangs: no progress for {quiet_s:.0f} s (limit {limit_s:.0f} s), {signs}"

    async def has_counters(self) -> bool:
        """Return True if the engine publishes counters; without, a full one seems to hang."""
        try:
            async with asyncio.timeout(COUNTERS_TIMEOUT_S):
                return bool(await self._counters())
        except TimeoutError:
            return False

    def _on_progress(self) -> None:
        self._detector.on_progress()
        self._progress.set()
        self._progress_at = time.monotonic()

    async def _count_time(self) -> None:
        at, usage = time.monotonic(), await self._engine.usage()
        while not self._detector.hung:
            await asyncio.sleep(self._detector.interval_s)
            elapsed_s, at = time.monotonic() - at, time.monotonic()
            before, usage = usage, await self._engine.usage()
            if self.asleep:
                self._detector.reset()
            else:
                computing = is_computing(before, usage)
                self._detector.on_tick(elapsed_s, computing=computing)

    async def _read(self) -> None:
        """Read the engine's counters until cancelled. A change is progress."""
        last = b""
        while True:
            if counters := await self._counters():
                if last and counters != last:
                    self._on_progress()
                last = counters
            await asyncio.sleep(self._detector.interval_s)

    async def _counters(self) -> bytes:
        """Return the lines of the engine's metrics that show progress; empty if unknown."""
        url, path = self._engine.url, self._engine.metrics.path
        if not await self._engine.listens():
            return b""
        try:
            async with self._http.send("GET", url, path) as answer:
                lines = (await answer.read(MAX_REPORT_BYTES)).splitlines()
        except OSError:
            return b""
        return b"\n".join(line for line in lines if line.startswith(self._names))

    async def _send_canaries(self) -> None:
        while True:
            await asyncio.sleep(self._detector.interval_s)
            needed = self._detector.needs_canary and not self.asleep
            if needed and await self._engine.listens():
                await self._send_canary()

    async def _send_canary(self) -> None:
        """Return once the canary is answered, or other requests have made progress."""
        self._progress.clear()
        engine = self._engine
        canary = asyncio.create_task(
            serves_token(self._http, engine.url, engine.model, engine.fields)
        )
        progress = asyncio.create_task(self._progress.wait())
        try:
            await asyncio.wait({canary, progress}, return_when=asyncio.FIRST_COMPLETED)
            if canary.done() and canary.result():
                self._on_progress()
        finally:
            canary.cancel()
            progress.cancel()
            await asyncio.gather(canary, progress, return_exceptions=True)


def progress_names(names: MetricNames) -> tuple[bytes, ...]:
    """Return the names of metrics that change only if the engine works on requests."""
    fields = names.kv_usage, names.prefix_queries, names.prompt_tokens, names.generation_tokens
    return tuple(name.encode() for name in dict.fromkeys(fields) if name)
