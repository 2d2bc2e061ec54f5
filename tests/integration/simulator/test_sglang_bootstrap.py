"""SGLang's protocol: both ranks receive the request at once and use a bootstrap room."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.support.simulator import Body, Client, Rank, simulator

FABLE = "A fox saw a crow in an old elm with a piece of cheese, and said to her: " * 20
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Rank, Rank]]:
    with ExitStack() as stack:
        options = ("--pd-protocol", "sglang", "--role")
        prefill, decode = simulator(*options, "prefill"), simulator(*options, "decode")
        yield stack.enter_context(prefill), stack.enter_context(decode)


async def bootstrap_fields(client: Client, prefill: Rank, room: int) -> Body:
    """Return the bootstrap fields of a request to a prefill rank."""
    async with client.session.get(f"{prefill.url}/server_info") as answer:
        port = (await answer.json())["disaggregation_bootstrap_port"]
    host = urlsplit(prefill.url).hostname
    return {"bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": room}


def texts(answer: Body) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


async def both(
    client: Client, ranks: tuple[Rank, Rank], room: int, **fields: object
) -> tuple[tuple[int, Body], tuple[int, Body]]:
    """Send a request to both ranks. Return the responses of prefill and decode rank."""
    body = {"model": "demo", **fields, **await bootstrap_fields(client, ranks[0], room)}
    first, second = await asyncio.gather(*(client.post(rank, PATH, body) for rank in ranks))
    return first, second


async def test_outputs_equal_those_of_aggregated_rank(
    client: Client, aggregated: Rank, pair: tuple[Rank, Rank]
) -> None:
    moved = await client.metric(pair[1], "nixl_bytes_transferred_sum")
    for room, prompt in enumerate(["Hi", FABLE, [FABLE + "one", FABLE + "two"]]):
        fields = {"prompt": prompt, "max_tokens": 40, "ignore_eos": True}
        (status, _), (decoded, answer) = await both(client, pair, room * 10, **fields)
        assert (status, decoded) == (200, 200)
        alone = await client.complete(aggregated, **fields)
        assert texts(answer) == texts(alone)
    assert await client.metric(pair[1], "nixl_bytes_transferred_sum") > moved
    await client.until_zero(pair[0], "kv_cache_usage_perc")
    await client.until_zero(pair[1], "kv_cache_usage_perc")


async def test_concurrent_handoffs(
    client: Client, aggregated: Rank, pair: tuple[Rank, Rank]
) -> None:
    async def same(i: int) -> bool:
        fields = {"prompt": f"{i} {FABLE}", "max_tokens": 8}
        _, (_, answer) = await both(client, pair, 1000 + i, **fields)
        alone = await client.complete(aggregated, **fields)
        return texts(answer) == texts(alone)

    assert all(await asyncio.gather(*map(same, range(30))))
    await client.until_zero(pair[0], "kv_cache_usage_perc")


async def test_request_for_several_choices_never_ends(
    client: Client, pair: tuple[Rank, Rank]
) -> None:
    """SGLang 0.5.23 does the same (sgl-project/sglang#30723). The client must disconnect."""
    asked = {
        "model": "demo",
        "prompt": FABLE,
        "n": 2,
        **await bootstrap_fields(client, pair[0], 77),
    }
    decode = asyncio.create_task(client.post(pair[1], PATH, asked))
    status, answer = await client.post(pair[0], PATH, asked)
    assert (status, len(answer["choices"])) == (200, 2)
    done, _ = await asyncio.wait([decode], timeout=1)
    assert not done
    decode.cancel()
    await client.until_zero(pair[1], "kv_cache_usage_perc")


@pytest.mark.parametrize("alone", [0, 1])
async def test_room_with_one_side_times_out(
    client: Client, start: Callable[..., Rank], alone: int
) -> None:
    roles = ("prefill", "decode")
    options = ("--pd-protocol", "sglang", "--kv-lease-s", "0.3", "--role")
    ranks = [start(*options, role) for role in roles]
    fields = {"model": "demo", "prompt": FABLE, **await bootstrap_fields(client, ranks[0], 5)}
    status, answer = await client.post(ranks[alone], PATH, fields)
    assert status == 500
    said = (
        "no decode rank pulled the prompt's KV blocks",
        "no prompt was computed for it within 0.3 s",
    )[alone]
    assert said in answer["error"]["message"]
    await client.until_zero(ranks[alone], "kv_cache_usage_perc")


async def test_disconnect_frees_rank_before_lease_ends(
    client: Client, start: Callable[..., Rank]
) -> None:
    """The default lease is two minutes."""
    options = ("--pd-protocol", "sglang", "--role")
    prefill, decode = start(*options, "prefill"), start(*options, "decode")
    for rank in (prefill, decode):
        fields = {"model": "demo", "prompt": FABLE, **await bootstrap_fields(client, prefill, 6)}
        asking = asyncio.create_task(client.post(rank, PATH, fields))
        await client.until_some(rank, "kv_cache_usage_perc")
        asking.cancel()
        await client.until_zero(rank, "kv_cache_usage_perc")


async def test_dead_prefill_rank_fails_waiting_decode_request(
    client: Client, pair: tuple[Rank, Rank], start: Callable[..., Rank]
) -> None:
    prefill = start("--pd-protocol", "sglang", "--role", "prefill")
    fields = {"model": "demo", "prompt": FABLE, **await bootstrap_fields(client, prefill, 7)}
    asking = asyncio.create_task(client.post(pair[1], PATH, fields))
    await client.until_some(pair[1], "kv_cache_usage_perc")
    prefill.process.kill()
    status, answer = await asking
    assert status == 500
    assert "bootstrap server at http://127.0.0.1" in answer["error"]["message"]


async def test_invalid_bootstrap_fields_are_rejected(
    client: Client, pair: tuple[Rank, Rank], aggregated: Rank
) -> None:
    for rank in pair:
        body: Body = {"model": "demo", "prompt": "Hi", "max_tokens": 1}
        status, answer = await client.post(rank, PATH, body)
        assert status == 400
        assert "without bootstrap room id" in answer["message"]
        check = {"bootstrap_host": "2.2.2.2", "bootstrap_room": 0}
        assert (await client.post(rank, PATH, body | check))[0] == 200
    status, _ = await client.post(pair[1], PATH, body | {"bootstrap_room": 0})
    assert status == 400
    async with client.session.get(f"{aggregated.url}/server_info") as response:
        assert response.status == 404


async def test_bootstrap_server_needs_key(client: Client, pair: tuple[Rank, Rank]) -> None:
    at = await bootstrap_fields(client, pair[0], 0)
    url = f"http://{at['bootstrap_host']}:{at['bootstrap_port']}"
    for path, key, status in (("/room/1", "wrong", 401), ("/room/x", None, 404)):
        headers = {"Authorization": f"Bearer {key}"} if key else None
        async with client.session.get(url + path, headers=headers) as answer:
            assert answer.status == status
