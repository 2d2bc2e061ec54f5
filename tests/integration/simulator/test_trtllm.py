"""TensorRT-LLM's protocol between ranks: the outputs of one rank, by real NIXL transfers."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hpc_dynamo.engines.trtllm.pd_protocol import TrtllmPdProtocol
from tests.support.simulator import MODEL, Body, Client, Rank, simulator

TRTLLM = ("--pd-protocol", "trtllm")
FABLE = "A fox saw a crow in an old elm with a piece of cheese, and said to her: " * 20
CHAT = [{"role": "user", "content": FABLE}]
DIALECT = TrtllmPdProtocol()


@pytest.fixture(scope="module")
def context() -> Iterator[Rank]:
    with simulator("--role", "prefill", *TRTLLM, "--enable-prompt-tokens-details") as rank:
        yield rank


@pytest.fixture(scope="module")
def generation() -> Iterator[Rank]:
    with simulator("--role", "decode", *TRTLLM, "--enable-prompt-tokens-details") as rank:
        yield rank


async def handed(client: Client, rank: Rank, path: str, body: Body) -> Body:
    """Prefill on `rank` and return the body for the decode worker."""
    status, answer = await client.post(rank, path, DIALECT.prefill(body))
    assert status == 200, answer
    return DIALECT.decode(body, answer)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": FABLE}),
        ("/v1/completions", {"prompt": list(range(33))}),
        ("/v1/chat/completions", {"messages": CHAT}),
    ],
    ids=["text", "ids", "chat"],
)
async def test_outputs_equal_those_of_aggregated_rank(
    client: Client, aggregated: Rank, context: Rank, generation: Rank, path: str, asked: Body
) -> None:
    body = {"model": MODEL, "max_tokens": 40, "ignore_eos": True, **asked}
    moved = await client.metric(generation, "nixl_bytes_transferred_sum")
    ready = await handed(client, context, path, body)
    status, answer = await client.post(generation, path, ready)
    _, alone = await client.post(aggregated, path, body)
    assert status == 200
    assert answer["choices"][0].pop("disaggregated_params") is None
    assert answer["choices"] == alone["choices"]
    assert answer["usage"]["completion_tokens"] == 40
    assert await client.metric(generation, "nixl_bytes_transferred_sum") > moved
    await client.until_zero(context, "kv_cache_usage_perc")


async def test_context_only_response(
    client: Client, aggregated: Rank, start: Callable[..., Rank]
) -> None:
    context = start("--role", "prefill", *TRTLLM)
    params = {"request_type": "context_only", "disagg_request_id": 1 << 60}
    answer = await client.complete(
        context, "Hello, world", max_tokens=1, ignore_eos=True, disaggregated_params=params
    )
    (choice,) = answer["choices"]
    told = choice["disaggregated_params"]
    assert choice["finish_reason"] == "length"
    assert (told["request_type"], told["disagg_request_id"]) == ("context_only", 1 << 60)
    assert len(told["first_gen_tokens"]) == 1
    assert told["ctx_request_id"] is not None
    assert base64.b64decode(told["encoded_opaque_state"], validate=True)
    _, ids = await client.post(aggregated, "/tokenize", {"prompt": "Hello, world"})
    assert answer["prompt_token_ids"] == ids["tokens"]


async def test_output_of_one_token_keeps_no_blocks(client: Client, context: Rank) -> None:
    """A JSON object may be one token long."""
    body: Body = {"prompt": f"{FABLE} as JSON:", "response_format": {"type": "json_object"}}
    ready = await handed(client, context, "/v1/completions", body)
    assert ready == body
    await client.until_zero(context, "kv_cache_usage_perc")


async def test_stream_begins_with_first_token(
    client: Client, aggregated: Rank, context: Rank, generation: Rank
) -> None:
    body = {"prompt": f"streamed {FABLE}", "max_tokens": 20, "ignore_eos": True, "stream": True}
    ready = await handed(client, context, "/v1/completions", body)
    async with client.session.post(f"{generation.url}/v1/completions", json=ready) as answer:
        lines = (await answer.text()).splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    said = "".join(event["choices"][0]["text"] for event in events)
    alone = {"max_tokens": 20, "ignore_eos": True}
    assert said == await client.text(aggregated, f"streamed {FABLE}", **alone)


GOOD = {"request_type": "generation_only", "ctx_request_id": 1, "first_gen_tokens": [1]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"disaggregated_params": {"request_type": "prefill_only"}}, "Invalid enum value"),
        ({"disaggregated_params": {**GOOD, "more": 1}}, "unknown field `more`"),
        ({"disaggregated_params": GOOD}, "lacks encoded_opaque_state"),
        ({"disaggregated_params": {**GOOD, "encoded_opaque_state": "?"}}, "cannot be read"),
        ({"disaggregated_params": {**GOOD, "encoded_opaque_state": "Pw=="}}, "cannot be read"),
        ({"kv_transfer_params": {}}, "Extra inputs are not permitted"),
    ],
)
async def test_invalid_disaggregated_params_are_rejected(
    client: Client, generation: Rank, fields: dict[str, Any], said: str
) -> None:
    status, answer = await client.post(generation, "/v1/completions", {"prompt": "x", **fields})
    assert status == 400
    assert said in answer["error"]["message"]


async def test_unused_lease_expires(client: Client, start: Callable[..., Rank]) -> None:
    rank = start("--role", "prefill", *TRTLLM, "--kv-lease-s", "0.2")
    await handed(client, rank, "/v1/completions", {"prompt": FABLE, "max_tokens": 9})
    assert await client.metric(rank, "kv_cache_usage_perc") > 0
    await client.until_zero(rank, "kv_cache_usage_perc")


async def test_dead_context_worker_fails_request(
    client: Client, generation: Rank, start: Callable[..., Rank]
) -> None:
    rank = start("--role", "prefill", *TRTLLM)
    ready = await handed(client, rank, "/v1/completions", {"prompt": FABLE, "max_tokens": 9})
    rank.process.kill()
    rank.process.wait(30)
    status, _ = await client.post(generation, "/v1/completions", ready)
    assert status == 500
    assert await client.metric(generation, "kv_cache_usage_perc") == 0
