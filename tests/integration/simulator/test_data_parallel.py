"""Ranks of one simulator: a prefix cache each, selected by a header or by load."""

from collections.abc import Iterator

import aiohttp
import pytest

from hpc_dynamo.engines.metrics import parse_metrics
from hpc_dynamo.engines.vllm.adapter import VLLM_METRICS
from tests.support.simulator import KEY, MODEL, REPORT_CACHED, Client, Rank, simulator

HEADER = "X-data-parallel-rank"
RANKS = 16
PROMPT_TOKENS, CACHED_TOKENS = 65, 64


@pytest.fixture(scope="module")
def engine() -> Iterator[Rank]:
    with simulator("--data-parallel-size", str(RANKS), "--num-blocks", "64", "--max-model-len",
                   "512", REPORT_CACHED) as rank:  # fmt: skip
        yield rank


async def cached(engine: Rank, prompt: int, rank: object, status: int = 200) -> int:
    """Return the cached tokens of a prompt on a rank."""
    body = {"model": MODEL, "prompt": [prompt] * PROMPT_TOKENS, "max_tokens": 1}
    headers = {"Authorization": f"Bearer {KEY}"}
    headers |= {} if rank is None else {HEADER: str(rank)}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.post(f"{engine.url}/v1/completions", json=body) as answer:
            assert answer.status == status, await answer.text()
            if status != 200:
                return 0
            details = (await answer.json())["usage"]["prompt_tokens_details"]
            return int(details["cached_tokens"]) if details else 0


async def test_each_rank_has_its_own_prefix_cache(engine: Rank, client: Client) -> None:
    for rank in range(RANKS):
        assert await cached(engine, 1, rank) == 0
        assert await cached(engine, 1, rank) == CACHED_TOKENS
    assert await cached(engine, 2, 3) == 0
    assert await cached(engine, 2, 4) == 0
    assert await cached(engine, 2, 3) == CACHED_TOKENS
    assert await client.metric(engine, "prefix_cache_hits_total") == (RANKS + 1) * CACHED_TOKENS


async def test_engine_selects_without_header_and_refuses_unknown_ranks(engine: Rank) -> None:
    assert await cached(engine, 3, None) == 0
    assert await cached(engine, 3, "none of them") == CACHED_TOKENS, "both on idle rank 0"
    for unknown in (-1, RANKS):
        await cached(engine, 3, unknown, status=400)


async def test_metrics_have_all_ranks(engine: Rank) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.post(f"{engine.url}/reset_prefix_cache") as answer:
            assert await answer.json() == {"success": True}
        async with session.get(f"{engine.url}/metrics") as answer:
            found = parse_metrics(await answer.text(), VLLM_METRICS)
    assert found.kv_usage == 0
    assert await cached(engine, 1, 7) == 0, "the reset concerns all ranks"
