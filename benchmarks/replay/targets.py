"""Common settings of the systems under test, and their interface to the load."""

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
    """Settings of all systems. `context` is the longest sequence in scaled tokens."""

    engine: Engine
    scale: Scale
    workers: int
    context: int
    model: Path
    words: tuple[str, ...] = ()  # extra overrides of hpc_dynamo

    def pools(self, kind: TopologyKind) -> dict[str, int]:
        """Return the number of workers per role, prefill first."""
        if kind is TopologyKind.aggregated:
            return {"aggregated": self.workers}
        return {"prefill": self.workers // 2, "decode": self.workers - self.workers // 2}


@dataclass(frozen=True)
class Running:
    """A system that accepts requests at `url`.

    `prefix` returns cache counts, given the number of prompt tokens sent; the difference of two
    readings counts.
    """

    url: str
    key: str
    pids: Sequence[int]
    prefix: Callable[[int], Awaitable[Prefix | None]]


Start = Callable[[Path, TopologyKind], AbstractAsyncContextManager[Running]]
"""Starts a system, with its logs in a folder, and ends it."""


async def look(http: HttpClient, url: str, path: str) -> bytes:
    """Return a page of a system. Raises ProcessExited if it does not respond."""
    try:
        async with asyncio.timeout(LOOK_S), http.send("GET", url, path) as answer:
            return await answer.read()
    except OSError as e:  # includes TimeoutError
        raise ProcessExited(f"{url}{path}: {e or type(e).__name__}") from e
