"""Defects of this program that concern one message or request.

They must not end the process: the other requests, or the engines of a node, would end with it.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from logging import Logger

COUNTS = Counter[str]()
"""Contained defects since the start of this process, by the name of the logger."""


@contextmanager
def contain_defects(
    log: Logger,
    message: object,
    *,
    passed: type[Exception] | tuple[type[Exception], ...] = (),
    then: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Log and count an exception, with its traceback and the message that caused it; call `then`.

    Exceptions of the classes `passed` are raised.
    """
    try:
        yield
    except passed:
        raise
    except Exception as e:  # noqa: BLE001  # a defect can have any class
        report_defect(log, message, e)
        if then:
            then()


async def contain_defects_of(
    work: Callable[[], Awaitable[object]],
    log: Logger,
    message: object,
    then: Callable[[], object] | None = None,
) -> None:
    """Call and await `work` with its defects contained. A task that is cancelled before its first
    step does not call it."""
    with contain_defects(log, message, then=then):
        await work()


def report_defect(log: Logger, message: object, error: BaseException) -> None:
    """Log and count an exception that the message has caused."""
    COUNTS[log.name] += 1
    log.error("this is a defect of hpc-dynamo: %.1000r", message, exc_info=error)
