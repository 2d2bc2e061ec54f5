"""Measures one point of a profile on otherwise idle workers.

The fastest of several repeats counts, as in Python's timeit: other load only adds time.
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

# Measurements are repeated until one of these limits is reached.
MIN_TOTAL_S, MAX_REPEATS = 0.5, 5
MIN_TOKEN_ID, MAX_TOKEN_ID = 100, 1099  # ordinary tokens of any vocabulary
COUNTER_TIMEOUT_S = 15.0  # limit of the wait for updated engine metrics
POLL_S = 0.1
REQUEST_TIMEOUT_S = 30.0


@dataclass
class ProfileBench:
    """Measures with a prefill and a decode worker, the same one if aggregated."""

    client: HttpClient
    engine: EngineAdapter
    model: str
    prefill: str  # base URLs
    decode: str
    pd_protocol: PdProtocol

    def __post_init__(self) -> None:
        self._prompts = defaultdict[int, list[int]](list)  # cached prompts by index

    async def measure(self, point: OperatingPoint) -> Measurement:
        """Measure a point. Raises RequestFailed, OSError."""
        match point.metric:
            case Metric.ttft:
                return await self._ttft(point)
            case Metric.itl:
                return await self._itl(point)
            case Metric.transfer:
                return await self._transfer(point)

    async def _ttft(self, point: OperatingPoint) -> Measurement:
        """Measure prompts that share only the cached start."""
        cached = self._prompt(0, point.cached_tokens)
        if cached:
            await self._complete(self.prefill, [*cached, *_tokens(1)])
        new = point.prompt_tokens - point.cached_tokens
        streams = await _repeat(lambda: self._stream(self.prefill, [*cached, *_tokens(new)]))
        reported = streams[-1].cached_tokens
        return Measurement(
            point=point,
            seconds=min(s.ttft_s for s in streams),
            cached_tokens=point.cached_tokens if reported is None else reported,
        )

    async def _stream(self, url: str, prompt: Sequence[int], tokens: int = 1) -> TimedStream:
        body = completion_body(self.model, prompt, tokens)
        return await stream_completion(self.client, url, body)

    async def _complete(self, url: str, prompt: Sequence[int]) -> bytes:
        return await complete(self.client, url, completion_body(self.model, prompt, 1))

    async def _itl(self, point: OperatingPoint) -> Measurement:
        """Cache all prompts, then time the gaps of concurrent responses."""
        prompts = [self._prompt(i, point.prompt_tokens) for i in range(point.sequences)]
        await _gather(self._complete(self.decode, prompt) for prompt in prompts)
        gaps = await _repeat(lambda: self._mean_gap(prompts))
        seconds = min((gap for gap in gaps if gap), default=None)
        context = point.prompt_tokens + RESPONSE_TOKENS / 2
        return Measurement(point=point, seconds=seconds, context_tokens=context)

    def _prompt(self, index: int, count: int) -> Sequence[int]:
        """Return the first tokens of the prompt with this index, always the same."""
        known = self._prompts[index]
        known += _tokens(count - len(known))
        return known[:count]

    async def _mean_gap(self, prompts: Sequence[Sequence[int]]) -> float | None:
        """Return the mean ITL of concurrent responses, None if they did not overlap."""
        streams = await _gather(self._stream(self.decode, p, RESPONSE_TOKENS) for p in prompts)
        started = max(s.token_at[0] for s in streams)
        ended = min(s.token_at[-1] for s in streams)
        inside = [[at for at in s.token_at if started <= at <= ended] for s in streams]
        if min(map(len, inside)) < TIMED_TOKENS:
            return None
        return fmean((ats[-1] - ats[0]) / (len(ats) - 1) for ats in inside)

    async def _transfer(self, point: OperatingPoint) -> Measurement:
        before = (await self._metrics()).kv_bytes
        streams = await _repeat(lambda: self._transferred(point.prompt_tokens))
        moved = await self._final_kv_bytes(before) - before
        seconds = min(s.ttft_s for s in streams)
        return Measurement(point=point, seconds=seconds, size_bytes=int(moved / len(streams)))

    async def _transferred(self, tokens: int) -> TimedStream:
        """Prefill a new prompt, then return the stream of the decode worker."""
        body, pd_protocol = completion_body(self.model, _tokens(tokens), 1), self.pd_protocol
        assert not isinstance(pd_protocol, ConcurrentProtocol), "refused by EngineAdapter.check"
        prefilled = await complete(self.client, self.prefill, pd_protocol.prefill(body))
        decode_body = pd_protocol.decode(body, OBJECT_DECODER.decode(prefilled))
        return await stream_completion(self.client, self.decode, decode_body)

    async def _final_kv_bytes(self, before: float) -> float:
        """Return the KV bytes transferred, once the engine has updated its counter."""
        try:
            async with asyncio.timeout(COUNTER_TIMEOUT_S):
                last = before
                while (now := (await self._metrics()).kv_bytes) == before or now != last:
                    last = now
                    await asyncio.sleep(POLL_S)
                return now
        except TimeoutError:
            return (await self._metrics()).kv_bytes

    async def kv_tokens(self) -> int:
        """Return the KV cache capacity of the decode worker, 0 if unknown."""
        return (await self._metrics()).kv_tokens

    async def _metrics(self) -> EngineMetrics:
        names = self.engine.metrics
        return parse_metrics((await self._get(names.path)).decode(), names)

    async def version(self) -> str:
        """Return the version of the engine, empty if unknown."""
        content = await self._get("/version")
        return msgspec.json.decode(content, type=_Version).version if content else ""

    async def _get(self, path: str) -> bytes:
        """Return a page of the decode worker, empty unless the status is 200."""
        async with (
            asyncio.timeout(REQUEST_TIMEOUT_S),
            self.client.send("GET", self.decode, path) as answer,
        ):
            content = await answer.read()
            return content if answer.status == 200 else b""


async def _repeat(measure: Callable[[], Awaitable[T]]) -> list[T]:
    """Measure repeatedly, one after the other."""
    until = perf_counter() + MIN_TOTAL_S
    found = [await measure()]
    while len(found) < MAX_REPEATS and perf_counter() < until:
        found.append(await measure())
    return found


async def _gather(body: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all concurrently; the first failure cancels the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in body]
    return [task.result() for task in tasks]


class _Version(msgspec.Struct):
    """Response of `GET /version`."""

    version: str = ""


def _tokens(count: int) -> list[int]:
    """Return random token ids, which no earlier prompt contains."""
    return [random.randint(MIN_TOKEN_ID, MAX_TOKEN_ID) for _ in range(count)]
