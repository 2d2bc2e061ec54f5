"""Defects of this program that concern one message or request.

They must not end the process: the other requests, or the engines of a node, would end with it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger


@contextmanager
def contain_defects(
    log: Logger,
    message: object,
    *,
    passed: type[Exception] | tuple[type[Exception], ...] = (),
    then: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Log an exception with its traceback and the message that caused it, then call `then`.

    Exceptions of the classes `passed` are raised.
    """
    try:
        yield
    except passed:
        raise
    except Exception:  # a defect can have any class
        log.exception("this is a defect of hpc-dynamo: %.1000r", message)
        if then:
            then()
