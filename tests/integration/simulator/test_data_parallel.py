"""Ranks of one simulator: a prefix cache each, selected by a header or by load."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import pytest

from hpc_dynamo.engines.metrics import parse_metrics
from hpc_dynamo.engines.vllm.adapter import VLLM_METRICS
from tests.integration.simulator.test_sglang_bootstrap import bootstrap_fields
from tests.support.simulator import KEY, MODEL, REPORT_CACHED, Body, Client, Rank, simulator

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


@contextmanager
def pair(*options: str) -> Iterator[tuple[Rank, Rank]]:
    """Start a prefill worker of two ranks and a decode worker of three."""
    each = ("--num-blocks", "64", "--max-model-len", "512", REPORT_CACHED, *options, "--role")
    prefill = simulator(*each, "prefill", "--data-parallel-size", "2")
    with prefill as first, simulator(*each, "decode", "--data-parallel-size", "3") as second:
        yield first, second


@pytest.fixture(scope="module")
def rooms() -> Iterator[tuple[Rank, Rank]]:
    with pair("--pd-protocol", "sglang", "--kv-lease-s", "1") as ranks:
        yield ranks


async def ask(client: Client, rank: Rank, body: Body, dp_rank: int | None = None) -> Body:
    headers = {} if dp_rank is None else {HEADER: str(dp_rank)}
    url = f"{rank.url}/v1/completions"
    async with client.session.post(url, json=body, headers=headers) as answer:
        return {"status": answer.status, **await answer.json()}


def cached_in(answer: Body) -> int:
    details = answer["usage"]["prompt_tokens_details"]
    return int(details["cached_tokens"]) if details else 0


async def test_ranks_hand_over_like_one_rank(client: Client, aggregated: Rank) -> None:
    """vLLM's protocol: the header selects the rank on either worker."""
    with pair() as (prefill, decode):
        prompt = [7] * PROMPT_TOKENS
        alone = await client.text(aggregated, prompt, max_tokens=8)
        seen = list[int]()
        for first, second in ((0, 2), (1, 2), (1, 0)):
            body: Body = {"model": MODEL, "prompt": prompt, "max_tokens": 1}
            wanted = {"kv_transfer_params": {"do_remote_decode": True}}
            computed = await ask(client, prefill, body | wanted, first)
            seen.append(cached_in(computed))
            params = {"kv_transfer_params": computed["kv_transfer_params"], "max_tokens": 8}
            answer = await ask(client, decode, body | params, second)
            assert answer["choices"][0]["text"] == alone
        assert seen == [0, 0, CACHED_TOKENS]
        await client.until_zero(prefill, "kv_cache_usage_perc")


@pytest.mark.parametrize(
    ("room", "fields", "header", "same"),
    [(4, {}, None, 0), (7, {}, None, 1), (6, {"disagg_prefill_dp_rank": 1}, 1, 1)],
)
async def test_room_or_header_selects_prefill_rank(
    client: Client, rooms: tuple[Rank, Rank], room: int, fields: Body, header: int, same: int
) -> None:
    """SGLang's protocol. `same`: the rank that then has the prompt."""
    prefill, decode = rooms
    body: Body = {"model": MODEL, "prompt": [100 + room] * PROMPT_TOKENS, "max_tokens": 4}
    body |= await bootstrap_fields(client, prefill, room)
    both = ask(client, prefill, body, header), ask(client, decode, body | fields, 2)
    _, decoded = await asyncio.gather(*both)
    assert decoded["status"] == 200, decoded
    for dp_rank in range(2):
        again = body | {"bootstrap_host": "2.2.2.2"}
        found = cached_in(await ask(client, prefill, again, dp_rank))
        assert found == (CACHED_TOKENS if dp_rank == same else 0)


async def test_room_of_another_rank_is_not_found(client: Client, rooms: tuple[Rank, Rank]) -> None:
    prefill, decode = rooms
    body: Body = {"model": MODEL, "prompt": [9] * PROMPT_TOKENS, "max_tokens": 4}
    body |= await bootstrap_fields(client, prefill, 8)
    both = ask(client, prefill, body, 1), ask(client, decode, body)
    failed = [answer["status"] for answer in await asyncio.gather(*both)]
    assert failed == [500, 500]
    invalid = await ask(client, prefill, body | {"routed_dp_rank": 2})
    assert invalid["status"] == 400


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
