"""Requests that were running on a worker when it died. One of them may be the cause.

They are retried apart from all others, so that the request that ends workers is found and the
others are answered. A death costs one of `engine.max_restarts`, and retries one by one take long.
So few requests are tried one by one; many are first tried in groups, which costs one more death.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import isqrt

from hpc_dynamo.batch.input_file import RequestEntry
from hpc_dynamo.config import Config
from hpc_dynamo.dispatch import WorkerFailed
from hpc_dynamo.errors import RequestFailed

ONE_BY_ONE = 64  # at most this many suspects are tried without groups
GRACE_S = 5.0  # time to notice the death of a worker that has answered 5xx
LOOK_S = 0.1

Run = Callable[[Sequence[RequestEntry], bool], Awaitable[list[RequestEntry]]]
"""(requests, whether a failure is final) → those that were under way when a worker died."""


def retry_groups(suspects: Sequence[RequestEntry]) -> list[Sequence[RequestEntry]]:
    """Return groups of one, or about as many groups as each has members."""
    size = 1 if len(suspects) <= ONE_BY_ONE else isqrt(len(suspects))
    return [suspects[start : start + size] for start in range(0, len(suspects), size)]


def max_solo_attempts(config: Config) -> int:
    """Return how often a request may end a worker that runs only this request.

    A worker may also die of another cause, but all such requests share `engine.max_restarts` with
    the first death, and each death costs one.
    """
    return max(1, min(config.batch.max_retries + 1, config.engine.max_restarts // 2))


async def retry_isolated(suspects: Sequence[RequestEntry], run: Run, tries: int) -> None:
    """Retry in groups, then one by one the members of groups that end a worker. Requests that end a
    worker that runs only them come last, up to `tries` times."""
    alone: list[RequestEntry] = []
    for group in retry_groups(suspects):
        alone += await run(group, False) if len(group) > 1 else group
    for left in reversed(range(tries)):
        again, alone = alone, []
        for entry in again:
            alone += await run([entry], not left)


async def worker_died(error: RequestFailed, alive: Callable[[int], object | None]) -> bool:
    """Return True if the worker that failed with a request died. After a 5xx answer it is watched
    for GRACE_S: some engines answer before they end, others answer and live on."""
    if not isinstance(error, WorkerFailed) or not error.reached:
        return False
    life = alive(error.rank)
    if not error.body or life is None:
        return True
    loop = asyncio.get_running_loop()
    until = loop.time() + GRACE_S
    while loop.time() < until:
        await asyncio.sleep(LOOK_S)
        if alive(error.rank) is not life:
            return True
    return False
