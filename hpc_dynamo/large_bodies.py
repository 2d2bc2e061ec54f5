"""Work on large bodies of requests, which would block an event loop for up to a second.

A thread does it. Python's lock lets the loop continue between two steps of that work, so each step
must be short: no single call to C may take longer than about 0.1 s for the largest body. There is
one thread, because several would also delay the loop by one step each.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LARGE_BYTES = 1 << 18  # a check of all fields takes 5 ms

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")


async def off_loop(size: int, function: Callable[[], T]) -> T:
    """Return the result of `function`, which works on `size` bytes. If they are many, a thread
    calls it."""
    if size < LARGE_BYTES:
        return function()
    return await asyncio.get_running_loop().run_in_executor(_THREAD, function)
