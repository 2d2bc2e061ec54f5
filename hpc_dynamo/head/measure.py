"""Measures one spot of a profile's grid on workers that have nothing else to do."""

import asyncio
import random
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, TypeVar

import msgspec

from hpc_dynamo.dispatch import OBJECT
from hpc_dynamo.engines import Engine
from hpc_dynamo.engines.metrics import parse
from hpc_dynamo.head.streams import Heard, body, stream, whole
from hpc_dynamo.http import Client
from hpc_dynamo.planner.grid import SLACK, WINDOW
from hpc_dynamo.planner.profile import Point, Spot, What

T = TypeVar("T")

REPEATS = 3
LEAST_ID, MOST_ID = 100, 1099  # plain tokens of any vocabulary
COUNTED_S = 15.0  # until an engine's metrics tell of a transfer
LOOK_S = 0.1


@dataclass
class Bench:
    """The workers: `prefill` and `decode` are one where the topology is aggregated."""

    client: Client
    engine: Engine
    model: str
    prefill: str  # base URLs
    decode: str

    async def measure(self, spot: Spot) -> Point:
        """Raises RequestFailed, OSError."""
        match spot.what:
            case What.ttft:
                return await self._ttft(spot)
            case What.itl:
                return await self._itl(spot)
            case What.transfer:
                return await self._transfer(spot)

    async def _ttft(self, spot: Spot) -> Point:
        """The median of prompts that share what is cached, and of which nothing else is."""
        cached = _tokens(spot.cached_tokens)
        if cached:
            await whole(self.client, self.prefill, body(self.model, [*cached, *_tokens(1)], 1))
        heard = [
            await self._stream(self.prefill, [*cached, *_tokens(spot.prompt_tokens - len(cached))])
            for _ in range(REPEATS)
        ]
        told = heard[-1].cached_tokens
        return Point(
            spot=spot,
            seconds=median(h.ttft_s for h in heard),
            cached_tokens=spot.cached_tokens if told is None else told,
        )

    async def _stream(self, url: str, prompt: Sequence[int], tokens: int = 1) -> Heard:
        return await stream(self.client, url, body(self.model, prompt, tokens))

    async def _itl(self, spot: Spot) -> Point:
        """Once every prompt is cached, all answers begin together: then their gaps are timed."""
        prompts = [_tokens(spot.prompt_tokens) for _ in range(spot.sequences)]
        await _all(whole(self.client, self.decode, body(self.model, p, 1)) for p in prompts)
        answer = WINDOW + 2 * SLACK
        heard = await _all(self._stream(self.decode, p, answer) for p in prompts)
        begun = max(h.token_at[0] for h in heard)
        ended = min(h.token_at[-1] for h in heard)
        inside = [[at for at in h.token_at if begun <= at <= ended] for h in heard]
        context = spot.prompt_tokens + answer / 2
        if min(map(len, inside)) < WINDOW:
            return Point(spot=spot, seconds=None, context_tokens=context)
        gaps = (float((ats[-1] - ats[0]) / (len(ats) - 1)) for ats in inside)
        return Point(spot=spot, seconds=fmean(gaps), context_tokens=context)

    async def _transfer(self, spot: Spot) -> Point:
        times, before = [], await self._kv_bytes()
        for _ in range(REPEATS):
            asked = body(self.model, _tokens(spot.prompt_tokens), 1)
            prefilled = await whole(self.client, self.prefill, self.engine.dialect.prefill(asked))
            handed = self.engine.dialect.decode(asked, OBJECT.decode(prefilled))
            times.append((await stream(self.client, self.decode, handed)).ttft_s)
        moved = await self._counted(before) - before
        return Point(spot=spot, seconds=median(times), size_bytes=int(moved / REPEATS))

    async def _counted(self, before: float) -> float:
        """Bytes moved so far, once an engine that counts now and then has counted all."""
        try:
            async with asyncio.timeout(COUNTED_S):
                last = before
                while (now := await self._kv_bytes()) == before or now != last:
                    last = now
                    await asyncio.sleep(LOOK_S)
                return now
        except TimeoutError:
            return await self._kv_bytes()

    async def _kv_bytes(self) -> float:
        async with self.client.send("GET", self.decode, "/metrics") as answer:
            return parse((await answer.read()).decode(), self.engine.metrics).kv_bytes

    async def version(self) -> str:
        """As the engine says; empty where it does not."""
        async with self.client.send("GET", self.decode, "/version") as answer:
            content = await answer.read()
        if answer.status != 200:
            return ""
        return msgspec.json.decode(content, type=_Version).version


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
