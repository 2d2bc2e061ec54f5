"""What the systems under test have in common, and what each of them is to the load."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.processes import ProcessExited
from benchmarks.replay.engine import Engine
from benchmarks.replay.results import Prefix
from benchmarks.replay.trace import Scale
from hpc_dynamo.config import TopologyKind
from hpc_dynamo.http import HttpClient

LOOK_S = 10.0


@dataclass(frozen=True)
class Setting:
    """What all systems have in common. `context` is the longest sequence, in tokens of ours."""

    engine: Engine
    scale: Scale
    workers: int
    context: int
    model: Path
    words: tuple[str, ...] = ()  # further ones for ours

    def pools(self, kind: TopologyKind) -> dict[str, int]:
        """How many workers of which role; those that prefill first."""
        if kind is TopologyKind.aggregated:
            return {"aggregated": self.workers}
        return {"prefill": self.workers // 2, "decode": self.workers - self.workers // 2}


@dataclass(frozen=True)
class Running:
    """A system that takes requests at `url`. `prefix` reads what it says of its caches, given
    how many prompt tokens it was asked for; differences of two readings count."""

    url: str
    key: str
    pids: Sequence[int]
    prefix: Callable[[int], Awaitable[Prefix | None]]


Start = Callable[[Path, TopologyKind], AbstractAsyncContextManager[Running]]
"""Starts a system, with its logs in a folder, and ends it."""


async def look(http: HttpClient, url: str, path: str) -> bytes:
    """A page of a system. Raises Ended where it does not come."""
    try:
        async with asyncio.timeout(LOOK_S), http.send("GET", url, path) as answer:
            return await answer.read()
    except OSError as e:  # TimeoutError is one
        raise ProcessExited(f"{url}{path}: {e or type(e).__name__}") from e
