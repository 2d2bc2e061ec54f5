"""Prefill and decode on two ranks: the outputs of one rank, by real NIXL transfers."""

import asyncio
from collections.abc import Callable

import pytest

from tests.support.simulator import Body, Client, Rank

FABLE = "A fox saw a crow in an old elm with a piece of cheese, and said to her: " * 20
PROMPTS = ["Hi", "sixteen", FABLE, FABLE + "sing for me!", list(range(16)), list(range(33))]


async def test_outputs_equal_those_of_aggregated_rank(
    client: Client, aggregated: Rank, prefill: Rank, decode: Rank
) -> None:
    moved = await client.metric(decode, "nixl_bytes_transferred_sum")
    for prompt in PROMPTS:
        params = await client.prefilled(prefill, prompt)
        assert params["do_remote_prefill"]
        assert not params["do_remote_decode"]
        fields = {"max_tokens": 40, "ignore_eos": True}
        handed = await client.text(decode, prompt, kv_transfer_params=params, **fields)
        assert handed == await client.text(aggregated, prompt, **fields)
    grown = await client.metric(decode, "nixl_bytes_transferred_sum") - moved
    assert grown >= 3 * 16 * 1024
    assert grown % (16 * 1024) == 0
    await client.until_zero(prefill, "kv_cache_usage_perc")
    assert await client.metric(decode, "kv_cache_usage_perc") == 0


async def test_decode_rank_does_not_pull_cached_blocks(
    client: Client, prefill: Rank, decode: Rank
) -> None:
    moved = list[float]()
    for _ in range(2):
        before = await client.metric(decode, "nixl_bytes_transferred_sum")
        params = await client.prefilled(prefill, f"twice {FABLE}")
        await client.text(decode, f"twice {FABLE}", kv_transfer_params=params)
        moved.append(await client.metric(decode, "nixl_bytes_transferred_sum") - before)
    assert moved[0] > moved[1] == 16 * 1024


async def test_damaged_byte_changes_output(
    client: Client, aggregated: Rank, decode: Rank, start: Callable[..., Rank]
) -> None:
    broken = start("--role", "prefill", "--damage-kv")
    prompt = f"damaged {FABLE}"
    params = await client.prefilled(broken, prompt)
    handed = await client.text(decode, prompt, kv_transfer_params=params, max_tokens=40)
    assert handed != await client.text(aggregated, prompt, max_tokens=40)


async def test_several_choices_after_handoff(
    client: Client, aggregated: Rank, prefill: Rank, decode: Rank
) -> None:
    fields = {"max_tokens": 20, "n": 3, "ignore_eos": True}
    params = await client.prefilled(prefill, f"three {FABLE}")
    handed = await client.complete(decode, f"three {FABLE}", kv_transfer_params=params, **fields)
    alone = await client.complete(aggregated, f"three {FABLE}", **fields)
    assert handed["choices"] == alone["choices"]
    assert len({choice["text"] for choice in handed["choices"]}) == 3


async def test_concurrent_handoffs(
    client: Client, aggregated: Rank, prefill: Rank, decode: Rank
) -> None:
    async def both(i: int) -> bool:
        params = await client.prefilled(prefill, f"{i} {FABLE}")
        handed = await client.text(decode, f"{i} {FABLE}", kv_transfer_params=params)
        return handed == await client.text(aggregated, f"{i} {FABLE}")

    assert all(await asyncio.gather(*map(both, range(40))))
    await client.until_zero(prefill, "kv_cache_usage_perc")


async def test_unused_lease_expires(client: Client, start: Callable[..., Rank]) -> None:
    rank = start("--role", "prefill", "--kv-lease-s", "0.2")
    await client.prefilled(rank, FABLE)
    assert await client.metric(rank, "kv_cache_usage_perc") > 0
    await client.until_zero(rank, "kv_cache_usage_perc")
    assert await client.metric(rank, "nixl_num_kv_expired_reqs_total") == 1


@pytest.mark.parametrize("met", [False, True], ids=["unknown peer", "known peer"])
async def test_dead_prefill_rank_fails_decode_request(
    client: Client, decode: Rank, start: Callable[..., Rank], met: bool
) -> None:
    rank = start("--role", "prefill")
    if met:
        params = await client.prefilled(rank, "before")
        await client.text(decode, "before", kv_transfer_params=params)
    prompt = f"orphan {met} {FABLE}"
    params = await client.prefilled(rank, prompt)
    rank.process.kill()
    rank.process.wait(30)
    body = {"prompt": prompt, "kv_transfer_params": params}
    status, answer = await client.post(decode, "/v1/completions", body)
    assert status == 500
    assert params["remote_engine_id"] in answer["error"]["message"]
    assert await client.metric(decode, "kv_cache_usage_perc") == 0
    assert await client.metric(decode, "nixl_num_failed_transfers_total") > 0


async def test_lost_blocks_are_recomputed_with_policy_recompute(
    client: Client, aggregated: Rank, start: Callable[..., Rank]
) -> None:
    rank, fallback = start("--role", "prefill"), ("--kv-load-failure-policy", "recompute")
    decode = start("--role", "decode", *fallback)
    params = await client.prefilled(rank, FABLE)
    rank.process.kill()
    rank.process.wait(30)
    fields = {"max_tokens": 20, "n": 2}
    again = await client.complete(decode, FABLE, kv_transfer_params=params, **fields)
    assert again["choices"] == (await client.complete(aggregated, FABLE, **fields))["choices"]


async def test_incomplete_parameters_are_rejected(client: Client, decode: Rank) -> None:
    body = {"prompt": "x", "kv_transfer_params": {"do_remote_prefill": True, "remote_port": 1}}
    status, answer = await client.post(decode, "/v1/completions", body)
    assert status == 400
    assert "remote_engine_id, remote_request_id" in answer["error"]["message"]


async def test_prompt_other_than_prefilled_is_rejected(
    client: Client, prefill: Rank, decode: Rank
) -> None:
    params = await client.prefilled(prefill, "short")
    body = {"prompt": FABLE, "kv_transfer_params": params}
    status, answer = await client.post(decode, "/v1/completions", body)
    assert status == 500
    assert "has 1 blocks" in answer["error"]["message"]
    await client.until_zero(prefill, "kv_cache_usage_perc")


async def test_decode_rank_reports_prefix_hits_of_prefill_rank(
    client: Client, prefill: Rank, decode: Rank
) -> None:
    hits = list[tuple[int, int]]()
    for _ in range(2):
        params = await client.prefilled(prefill, f"hits {FABLE}")
        answer = await client.complete(decode, f"hits {FABLE}", kv_transfer_params=params)
        told = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        hits.append((params["remote_prefill_cached_tokens"], told))
    assert hits[0] == (0, 0)
    assert hits[1][0] == hits[1][1] > 400


async def test_token_ids_in_parameters_replace_messages(
    client: Client, aggregated: Rank, prefill: Rank, decode: Rank
) -> None:
    path, fields = "/v1/chat/completions", {"max_tokens": 20, "ignore_eos": True}
    body = {"messages": [{"role": "user", "content": FABLE}], **fields}
    _, alone = await client.post(aggregated, path, body)
    _, ids = await client.post(aggregated, "/tokenize", {"messages": body["messages"]})
    params = await client.prefilled(prefill, ids["tokens"])
    handed: Body = {"messages": [{"role": "user", "content": "ignored"}], **fields}
    handed["kv_transfer_params"] = {**params, "prompt_token_ids": ids["tokens"]}
    _, answer = await client.post(decode, path, handed)
    assert answer["choices"] == alone["choices"]
    assert answer["usage"]["prompt_tokens"] == ids["count"]
