"""Requests that were under way on a worker when it died. One of them may be the cause.

They are tried again apart from all others, so that the one that ends workers is found and the
others are answered. A death costs one of `engine.restarts`, and requests that are tried one by one
take long: few are tried one by one, many in groups first, which costs one death more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import isqrt

from hpc_dynamo.batch.requests import Entry
from hpc_dynamo.config import Config
from hpc_dynamo.dispatch import Broken
from hpc_dynamo.errors import RequestFailed

ONE_BY_ONE = 64  # as many suspects are not tried in groups
GRACE_S = 5.0  # for the death of a worker to be noticed after it has answered 5xx
LOOK_S = 0.1

Run = Callable[[Sequence[Entry], bool], Awaitable[list[Entry]]]
"""(requests, whether a failure is final) → those that were under way when a worker died."""


def groups(suspects: Sequence[Entry]) -> list[Sequence[Entry]]:
    """One by one, or about as many groups as each has members."""
    size = 1 if len(suspects) <= ONE_BY_ONE else isqrt(len(suspects))
    return [suspects[start : start + size] for start in range(0, len(suspects), size)]


def tries_alone(config: Config) -> int:
    """How often a request may end a worker while it is alone, before it is given up. A worker may
    also die of something else, but each death costs one of `engine.restarts`, which are shared by
    all such requests and the first death, in company."""
    return max(1, min(config.batch.retries + 1, config.engine.restarts // 2))


async def retry_apart(suspects: Sequence[Entry], run: Run, tries: int) -> None:
    """Try all again: in groups, then the members of groups that end a worker one by one. Those that
    do it alone come last, until they have had so many `tries`."""
    alone: list[Entry] = []
    for group in groups(suspects):
        alone += await run(group, False) if len(group) > 1 else group
    for left in reversed(range(tries)):
        again, alone = alone, []
        for entry in again:
            alone += await run([entry], not left)


async def ended_a_worker(error: RequestFailed, alive: Callable[[int], object | None]) -> bool:
    """Whether the worker that failed with a request died. One that answered 5xx is given some time:
    engines answer before they end, and some answer so and live on."""
    if not isinstance(error, Broken) or not error.reached:
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
