"""Fixtures: a head with a router on a unix socket; tests fail on errors logged by asyncio."""

import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.unit.router.links import Head, served
from tests.unit.router.requests import ONE, aggregated_router, assert_nothing_left


@pytest.fixture(autouse=True)
def _nothing_unexpected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail on lost exceptions and broken callbacks, which the event loop only logs."""
    yield
    records = caplog.get_records("call")
    assert [r for r in records if r.name == "asyncio" and r.levelno > logging.INFO] == []


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    """Start a head with two workers that take one request each."""
    async with served(await aggregated_router(2, ONE)) as head:
        yield head
    assert_nothing_left(head.router)
