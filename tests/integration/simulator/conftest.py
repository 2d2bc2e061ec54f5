"""Simulator ranks that several tests share, and clients for them."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import aiohttp
import openai
import pytest

from tests.support.runs import HANG_S
from tests.support.simulator import KEY, REPORT_CACHED, Client, Rank, simulator


@pytest.fixture
def start() -> Iterator[Callable[..., Rank]]:
    """Return a function that starts ranks, which end with the test."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(simulator(*options))


@pytest.fixture(scope="session")
def aggregated() -> Iterator[Rank]:
    with simulator("--num-blocks", "1024", REPORT_CACHED) as rank:
        yield rank


@pytest.fixture(scope="session")
def prefill() -> Iterator[Rank]:
    with simulator("--role", "prefill", REPORT_CACHED) as rank:
        yield rank


@pytest.fixture(scope="session")
def decode() -> Iterator[Rank]:
    with simulator("--role", "decode", REPORT_CACHED) as rank:
        yield rank


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        yield Client(session)


@pytest.fixture
async def ai(aggregated: Rank) -> AsyncIterator[openai.AsyncOpenAI]:
    """Return the official client, connected to the aggregated rank."""
    url = f"{aggregated.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=HANG_S) as made:
        yield made
