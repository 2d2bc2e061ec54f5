"""Measures one spot of a profile's grid on workers that have nothing else to do.

The quickest of several times counts, as with Python's timeit: what disturbs a machine only adds.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import Any, TypeVar

import msgspec

from hpc_dynamo.dispatch import OBJECT_DECODER
from hpc_dynamo.engines import ConcurrentProtocol, EngineAdapter, PdProtocol
from hpc_dynamo.engines.metrics import EngineMetrics, parse_metrics
from hpc_dynamo.http import HttpClient
from hpc_dynamo.planner.profile import Measurement, Metric, OperatingPoint
from hpc_dynamo.profiler.client import TimedStream, complete, completion_body, stream_completion
from hpc_dynamo.profiler.grid import RESPONSE_TOKENS, TIMED_TOKENS

T = TypeVar("T")

ENOUGH_S, MOST = 0.5, 5  # what takes less is measured again, so many times at most
LEAST_ID, MOST_ID = 100, 1099  # plain tokens of any vocabulary
COUNTED_S = 15.0  # until an engine's metrics tell of a transfer
LOOK_S = 0.1
LOOK_TIMEOUT_S = 30.0


@dataclass
class ProfileBench:
    """The workers: `prefill` and `decode` are one where the topology is aggregated."""

    client: HttpClient
    engine: EngineAdapter
    model: str
    prefill: str  # base URLs
    decode: str
    dialect: PdProtocol

    def __post_init__(self) -> None:
        self._known = defaultdict[int, list[int]](list)  # prompts that are, or will be, cached

    async def measure(self, spot: OperatingPoint) -> Measurement:
        """Raises RequestFailed, OSError."""
        match spot.metric:
            case Metric.ttft:
                return await self._ttft(spot)
            case Metric.itl:
                return await self._itl(spot)
            case Metric.transfer:
                return await self._transfer(spot)

    async def _ttft(self, spot: OperatingPoint) -> Measurement:
        """Of prompts that share what is cached, and of which nothing else is."""
        cached = self._prompt(0, spot.cached_tokens)
        if cached:
            await complete(
                self.client, self.prefill, completion_body(self.model, [*cached, *_tokens(1)], 1)
            )
        new = spot.prompt_tokens - spot.cached_tokens
        heard = await _often(lambda: self._stream(self.prefill, [*cached, *_tokens(new)]))
        told = heard[-1].cached_tokens
        return Measurement(
            spot=spot,
            seconds=min(h.ttft_s for h in heard),
            cached_tokens=spot.cached_tokens if told is None else told,
        )

    async def _stream(self, url: str, prompt: Sequence[int], tokens: int = 1) -> TimedStream:
        return await stream_completion(
            self.client, url, completion_body(self.model, prompt, tokens)
        )

    async def _itl(self, spot: OperatingPoint) -> Measurement:
        """Once every prompt is cached, all answers begin together: then their gaps are timed."""
        prompts = [self._prompt(i, spot.prompt_tokens) for i in range(spot.sequences)]
        await _all(
            complete(self.client, self.decode, completion_body(self.model, p, 1)) for p in prompts
        )
        gaps = await _often(lambda: self._gap(prompts))
        seconds = min((gap for gap in gaps if gap), default=None)
        return Measurement(
            spot=spot, seconds=seconds, context_tokens=spot.prompt_tokens + RESPONSE_TOKENS / 2
        )

    def _prompt(self, index: int, count: int) -> Sequence[int]:
        """The beginning of the prompt of that index, always the same."""
        known = self._known[index]
        known += _tokens(count - len(known))
        return known[:count]

    async def _gap(self, prompts: Sequence[Sequence[int]]) -> float | None:
        """The mean time between two tokens of answers made at once; None if they were not."""
        heard = await _all(self._stream(self.decode, prompt, RESPONSE_TOKENS) for prompt in prompts)
        begun = max(h.token_at[0] for h in heard)
        ended = min(h.token_at[-1] for h in heard)
        inside = [[at for at in h.token_at if begun <= at <= ended] for h in heard]
        if min(map(len, inside)) < TIMED_TOKENS:
            return None
        return fmean((ats[-1] - ats[0]) / (len(ats) - 1) for ats in inside)

    async def _transfer(self, spot: OperatingPoint) -> Measurement:
        before = (await self._metrics()).kv_bytes
        heard = await _often(lambda: self._handed_over(spot.prompt_tokens))
        moved = await self._counted(before) - before
        seconds = min(h.ttft_s for h in heard)
        return Measurement(spot=spot, seconds=seconds, size_bytes=int(moved / len(heard)))

    async def _handed_over(self, tokens: int) -> TimedStream:
        """By the decode worker, once the prefill worker has answered."""
        asked, dialect = completion_body(self.model, _tokens(tokens), 1), self.dialect
        assert not isinstance(dialect, ConcurrentProtocol), "refused by EngineAdapter.check"
        prefilled = await complete(self.client, self.prefill, dialect.prefill(asked))
        handed = dialect.decode(asked, OBJECT_DECODER.decode(prefilled))
        return await stream_completion(self.client, self.decode, handed)

    async def _counted(self, before: float) -> float:
        """Bytes moved so far, once an engine that counts now and then has counted all."""
        try:
            async with asyncio.timeout(COUNTED_S):
                last = before
                while (now := (await self._metrics()).kv_bytes) == before or now != last:
                    last = now
                    await asyncio.sleep(LOOK_S)
                return now
        except TimeoutError:
            return (await self._metrics()).kv_bytes

    async def kv_tokens(self) -> int:
        """That the decode worker's cache holds; 0 where it does not say."""
        return (await self._metrics()).kv_tokens

    async def _metrics(self) -> EngineMetrics:
        names = self.engine.metrics
        return parse_metrics((await self._get(names.path)).decode(), names)

    async def version(self) -> str:
        """As the engine says; empty where it does not."""
        content = await self._get("/version")
        return msgspec.json.decode(content, type=_Version).version if content else ""

    async def _get(self, path: str) -> bytes:
        """Of the decode worker; empty for all but a good answer."""
        async with (
            asyncio.timeout(LOOK_TIMEOUT_S),
            self.client.send("GET", self.decode, path) as answer,
        ):
            content = await answer.read()
            return content if answer.status == 200 else b""


async def _often(measure: Callable[[], Awaitable[T]]) -> list[T]:
    """One after the other."""
    until = perf_counter() + ENOUGH_S
    found = [await measure()]
    while len(found) < MOST and perf_counter() < until:
        found.append(await measure())
    return found


async def _all(asked: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All at once; the first failure ends the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in asked]
    return [task.result() for task in tasks]


class _Version(msgspec.Struct):
    version: str = ""


def _tokens(count: int) -> list[int]:
    """That nobody has asked before."""
    return [random.randint(LEAST_ID, MOST_ID) for _ in range(count)]
