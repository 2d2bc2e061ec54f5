"""A head that serves its router through a unix socket, and ears for what loops complain of."""

import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.unit.router.links import Head, served
from tests.unit.router.requests import ONE, assert_nothing_left, whole


@pytest.fixture(autouse=True)
def _nothing_unexpected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Lost exceptions and broken callbacks are only logged by the loop."""
    yield
    records = caplog.get_records("call")
    assert [r for r in records if r.name == "asyncio" and r.levelno > logging.INFO] == []


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    """Two workers that take one request each."""
    async with served(await whole(2, ONE)) as head:
        yield head
    assert_nothing_left(head.router)
