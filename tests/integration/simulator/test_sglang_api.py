"""Endpoints of SGLang: requests are aborted by their id, and an idle rank changes its role."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.simulator import MODEL, Body, Client, Rank, simulator

OPTIONS = ("--pd-protocol", "sglang", "--role", "decode", "--timing", "cpu-135m")
ABANDONED = ("--disconnect-check-s", "600")
ALONE: Body = {"bootstrap_host": "2.2.2.2", "bootstrap_room": 0}  # no other rank is needed
LONG: Body = {"model": MODEL, "max_tokens": 1000, "ignore_eos": True, **ALONE}


@pytest.fixture(scope="module")
def rank() -> Iterator[Rank]:
    with ExitStack() as stack:
        yield stack.enter_context(simulator(*OPTIONS, *ABANDONED, "--enable-pd-role-switch"))


async def abort(client: Client, rank: Rank, request_id: str) -> None:
    async with client.session.post(f"{rank.url}/abort_request", json={"rid": request_id}) as answer:
        assert answer.status == 200


async def switch(client: Client, rank: Rank, role: str) -> tuple[int, Body]:
    return await client.post(rank, "/pd_role_switch", {"new_role": role})


async def role_of(client: Client, rank: Rank) -> str:
    async with client.session.get(f"{rank.url}/server_info") as answer:
        return str((await answer.json())["disaggregation_mode"])


@pytest.mark.parametrize(
    ("prompt", "suffixes"), [("one", [""]), (["one"], ["_0"]), (["one", "two"], ["_0", "_1"])]
)
async def test_request_ends_by_its_id(
    client: Client, rank: Rank, prompt: object, suffixes: list[str]
) -> None:
    body = LONG | {"prompt": prompt, "rid": "mine"}
    sent = asyncio.create_task(client.post(rank, "/v1/completions", body))
    await client.until(rank, "num_requests_running", len(suffixes))
    await abort(client, rank, "other")
    assert await client.metric(rank, "num_requests_running") == len(suffixes)
    for suffix in suffixes:
        await abort(client, rank, f"mine{suffix}")
    status, answer = await sent
    assert status == 200
    assert [c["finish_reason"] for c in answer["choices"]] == ["abort"] * len(suffixes)
    await client.until_zero(rank, "kv_cache_usage_perc")


async def test_rank_of_lost_client_works_on_until_the_abort(client: Client, rank: Rank) -> None:
    body = LONG | {"prompt": "lost", "rid": "lost"}
    sent = asyncio.create_task(client.post(rank, "/v1/completions", body))
    await client.until(rank, "num_requests_running", 1)
    before = await client.metric(rank, "generation_tokens_total")
    sent.cancel()
    async with asyncio.timeout(60):
        while await client.metric(rank, "generation_tokens_total") < before + 3:
            pass
    await abort(client, rank, "lost")
    await client.until_zero(rank, "num_requests_running")
    await client.until_zero(rank, "kv_cache_usage_perc")


async def test_only_idle_rank_changes_its_role(client: Client, rank: Rank) -> None:
    sent = asyncio.create_task(
        client.post(rank, "/v1/completions", LONG | {"prompt": "x", "rid": "busy"})
    )
    await client.until(rank, "num_requests_running", 1)
    status, answer = await switch(client, rank, "prefill")
    assert (status, answer["success"], answer["safe_to_restore"]) == (400, False, True)
    assert "instance is not idle" in answer["message"]
    await abort(client, rank, "busy")
    await sent
    for role, old in (("prefill", "decode"), ("prefill", "prefill"), ("decode", "prefill")):
        status, answer = await switch(client, rank, role)
        assert (status, answer["old_role"], answer["new_role"]) == (200, old, role)
        assert await role_of(client, rank) == role
    assert (await switch(client, rank, "none"))[0] == 400


async def test_rank_without_the_option_keeps_its_role(
    client: Client, start: Callable[..., Rank]
) -> None:
    rank = start("--pd-protocol", "sglang", "--role", "prefill")
    status, answer = await switch(client, rank, "decode")
    assert (status, answer["message"]) == (400, "--enable-pd-role-switch is not set on this server")
    assert await role_of(client, rank) == "prefill"


async def test_other_protocols_have_no_such_endpoints(
    client: Client, start: Callable[..., Rank]
) -> None:
    rank = start("--role", "prefill")
    assert (await switch(client, rank, "decode"))[0] == 404
