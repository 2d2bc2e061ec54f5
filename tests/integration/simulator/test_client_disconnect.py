"""Disconnected clients: their work ends at once in every state, streamed or not."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from tests.support.simulator import KEY, Body, Client, Rank

FABLE = "A fox saw a crow in an old elm with a piece of cheese, and said to her: " * 20
SLOW = ("--timing", "cpu-135m")  # 0.1 s per token, 0.7 s for FABLE
LONG: Body = {"max_tokens": 1000, "ignore_eos": True}
streamed = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@asynccontextmanager
async def asking(rank: Rank, body: Body) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request on a new connection, which is closed at the end."""
    host, _, port = rank.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = msgspec.json.encode(body)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    try:
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()


async def assert_idle(client: Client, rank: Rank) -> None:
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        await client.until_zero(rank, name)


@streamed
async def test_disconnect_during_output_frees_rank(
    client: Client, start: Callable[..., Rank], stream: bool
) -> None:
    rank = start(*SLOW)
    async with asking(rank, {"prompt": "long", "stream": stream, **LONG}) as reader:
        await client.until(rank, "num_requests_running", 1)
        if stream:
            assert await reader.readuntil(b"\n\n")
        assert await client.metric(rank, "kv_cache_usage_perc") > 0
    await assert_idle(client, rank)
    assert await client.metric(rank, "generation_tokens_total") < 20


@streamed
async def test_disconnect_of_waiting_request_leaves_running_one(
    client: Client, start: Callable[..., Rank], stream: bool
) -> None:
    rank = start("--timing", "instant", "--max-num-seqs", "1", "--stall-after-tokens", "1")
    async with asking(rank, {"prompt": "first", **LONG}):
        await client.until(rank, "num_requests_running", 1)
        async with asking(rank, {"prompt": "second", "stream": stream, **LONG}):
            await client.until(rank, "num_requests_waiting", 1)
        await client.until_zero(rank, "num_requests_waiting")
        assert await client.metric(rank, "num_requests_running") == 1
    await assert_idle(client, rank)


async def test_disconnect_ends_all_choices_and_prompts(
    client: Client, start: Callable[..., Rank]
) -> None:
    rank = start("--timing", "instant", "--stall-after-tokens", "3")
    async with asking(rank, {"prompt": ["a", "b"], "n": 3, "stream": True, **LONG}):
        await client.until(rank, "num_requests_running", 6)
    await assert_idle(client, rank)


async def test_disconnect_during_prefill_frees_prefill_rank(
    client: Client, start: Callable[..., Rank]
) -> None:
    rank = start("--role", "prefill", *SLOW)
    ask = {"prompt": FABLE, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
    async with asking(rank, ask):
        await client.until(rank, "num_requests_running", 1)
    await assert_idle(client, rank)
    assert await client.metric(rank, "nixl_num_kv_expired_reqs_total") == 0
    assert await client.metric(rank, "prompt_tokens_total") == 0


@streamed
async def test_disconnect_during_decode_frees_both_ranks(
    client: Client, prefill: Rank, start: Callable[..., Rank], stream: bool
) -> None:
    decode = start("--role", "decode", *SLOW)
    params = await client.prefilled(prefill, FABLE)
    body = {"prompt": FABLE, "stream": stream, "kv_transfer_params": params, **LONG}
    async with asking(decode, body):
        await client.until(decode, "num_requests_running", 1)
    await assert_idle(client, decode)
    await assert_idle(client, prefill)


async def test_disconnect_before_pull_releases_prefilled_blocks(
    client: Client, prefill: Rank, start: Callable[..., Rank]
) -> None:
    decode = start("--role", "decode", "--max-num-seqs", "1", "--stall-after-tokens", "1")
    params = await client.prefilled(prefill, FABLE)
    async with asking(decode, {"prompt": "first", **LONG}):
        await client.until(decode, "num_requests_running", 1)
        async with asking(decode, {"prompt": FABLE, "kv_transfer_params": params, **LONG}):
            await client.until(decode, "num_requests_waiting", 1)
            assert await client.metric(prefill, "kv_cache_usage_perc") > 0
        await client.until_zero(decode, "num_requests_waiting")
        await assert_idle(client, prefill)


async def test_rejected_decode_request_releases_prefilled_blocks(
    client: Client, prefill: Rank, decode: Rank
) -> None:
    body: Any = {"prompt": FABLE, "max_tokens": 0}
    body["kv_transfer_params"] = await client.prefilled(prefill, FABLE)
    assert await client.metric(prefill, "kv_cache_usage_perc") > 0
    status, _ = await client.post(decode, "/v1/completions", body)
    assert status == 400
    await assert_idle(client, prefill)


async def test_disconnect_during_pull_from_hanging_rank_frees_both_ranks(
    client: Client, start: Callable[..., Rank], decode: Rank
) -> None:
    prefill = start("--role", "prefill")
    params = await client.prefilled(prefill, f"hang {FABLE}")
    prefill.process.send_signal(signal.SIGSTOP)
    body = {"prompt": f"hang {FABLE}", "kv_transfer_params": params, **LONG}
    async with asking(decode, body):
        await client.until(decode, "num_requests_waiting", 1)
    await client.until_zero(decode, "num_requests_waiting")
    prefill.process.send_signal(signal.SIGCONT)
    await assert_idle(client, decode)
    await assert_idle(client, prefill)


async def test_slow_reader_does_not_block_rank_and_gets_all_tokens(
    client: Client, start: Callable[..., Rank]
) -> None:
    rank = start("--max-model-len", "40000")
    body = {"prompt": "long", "stream": True, "max_tokens": 30_000, "ignore_eos": True}
    async with asking(rank, body) as reader:
        await client.until(rank, "generation_tokens_total", 30_000)
        content = b""
        while not content.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            content += await asyncio.wait_for(reader.read(1 << 16), 60)
    events = [line for line in content.split(b"\n\n") if b"data: {" in line]
    assert len(events) < 30_000  # accumulated tokens arrive in one event
    records = [msgspec.json.decode(event.partition(b"data: ")[2]) for event in events]
    assert len("".join(record["choices"][0]["text"] for record in records).split()) == 30_000
