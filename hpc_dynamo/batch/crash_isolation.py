"""Isolated retries of requests that were running on a worker when it died.

One of them may have crashed the worker. They are retried apart from all others, so that this
request is found and the others are answered. A crash costs one of `engine.max_restarts`, and
retries one by one are slow. So few requests are tried one by one; many are first tried in groups,
which costs one more crash.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import isqrt

from hpc_dynamo.batch.input_file import RequestEntry
from hpc_dynamo.config import Config
from hpc_dynamo.dispatch import WorkerFailed
from hpc_dynamo.errors import RequestFailed

ONE_BY_ONE = 64  # maximum number of requests that are tried without groups
GRACE_S = 5.0  # time to detect the death of a worker that has answered 5xx
POLL_INTERVAL_S = 0.1

RunGroup = Callable[[Sequence[RequestEntry], bool], Awaitable[list[RequestEntry]]]
"""(requests, whether a crash is their final failure) -> those that ran when a worker died."""


def retry_groups(suspects: Sequence[RequestEntry]) -> list[Sequence[RequestEntry]]:
    """Return groups of one request, or for many suspects groups of about sqrt(n) requests."""
    size = 1 if len(suspects) <= ONE_BY_ONE else isqrt(len(suspects))
    return [suspects[start : start + size] for start in range(0, len(suspects), size)]


def max_solo_attempts(config: Config) -> int:
    """Return how often a request may crash a worker that runs only this request.

    A worker may also die for another reason. But all such requests share `engine.max_restarts` with
    the first crash, and each crash costs one.
    """
    return max(1, min(config.batch.max_retries + 1, config.engine.max_restarts // 2))


async def retry_isolated(suspects: Sequence[RequestEntry], run: RunGroup, attempts: int) -> None:
    """Retry in groups, then one by one the members of groups that crash a worker.

    Requests that crash a worker on their own are retried last, up to `attempts` times.
    """
    single: list[RequestEntry] = []
    for group in retry_groups(suspects):
        single += await run(group, False) if len(group) > 1 else group
    for remaining in reversed(range(attempts)):
        entries, single = single, []
        for entry in entries:
            single += await run([entry], not remaining)


async def worker_died(error: RequestFailed, process_of: Callable[[int], object | None]) -> bool:
    """Return True if the worker that failed with a request died.

    After a 5xx response it is watched for GRACE_S: some engines respond before they end, others
    respond and continue.
    """
    if not isinstance(error, WorkerFailed) or not error.reached:
        return False
    process = process_of(error.rank)
    if not error.body or process is None:
        return True
    loop = asyncio.get_running_loop()
    deadline = loop.time() + GRACE_S
    while loop.time() < deadline:
        await asyncio.sleep(POLL_INTERVAL_S)
        if process_of(error.rank) is not process:
            return True
    return False
