"""Streams of real vLLM continue after any cut: the rest of a greedy answer is the same."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hpc_dynamo.config import Config, Role, Topology, TopologyKind
from hpc_dynamo.engines.vllm.pd_protocol import VllmPdProtocol
from hpc_dynamo.preprocess import Preprocessor
from tests.support.cut_streams import MigratingClient, assert_unbroken, migrating, text_of
from tests.support.vllm import provisioned
from tests.support.vllm_serve import MODEL, Served

pytestmark = pytest.mark.vllm

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 40}
QUESTIONS = (
    "Tell a story about the sea and its ships.",
    "Write a Python function that sorts a list of words by their length, with an example.",
    "Nenne fünf Städte in Österreich und schreibe 日本語 und 🙂 dazu.",
)
# Bytes of the stream, by question. tests/unit/dispatch/test_cut_streams cuts at each event.
CUTS = ((900,), (5000,), (900, 2000, 3500, 5000))


@pytest.fixture
async def client(served: Served) -> AsyncIterator[MigratingClient]:
    """Return a client whose two workers are the same engine."""
    engine = (Role.aggregated, served.workers()["aggregated"])
    config = Config(topology=Topology(kind=TopologyKind.aggregated))
    tokenizer = Preprocessor.load(provisioned().model)
    protocol = VllmPdProtocol()
    async with migrating(config, protocol, [engine] * 2, served.token, tokenizer) as made:
        yield made


@pytest.mark.parametrize(("question", "cuts"), list(zip(QUESTIONS, CUTS, strict=True)))
async def test_chat_is_unbroken_after_any_cut(
    client: MigratingClient, question: str, cuts: tuple[int, ...]
) -> None:
    body = GREEDY | {"messages": [{"role": "user", "content": question}]}
    whole = await client.whole(CHAT, body)
    for cut in cuts:
        assert_unbroken(await client.stream(CHAT, body, cut), whole)


async def test_completion_with_stop_string_is_unbroken(client: MigratingClient) -> None:
    body = GREEDY | {"prompt": "One, two, three, four,", "ignore_eos": True}
    whole = await client.whole(COMPLETIONS, body)
    text = text_of(whole)
    assert_unbroken(await client.stream(COMPLETIONS, body, 900), whole)
    for stop, cut in ((text[60:70], 2000), ([text[81:84], "never"], 3000)):
        stopped = body | {"stop": stop}
        whole = await client.whole(COMPLETIONS, stopped)
        assert_unbroken(await client.stream(COMPLETIONS, stopped, cut), whole)


async def test_logprobs_of_chat_continue(client: MigratingClient) -> None:
    talk = [{"role": "user", "content": QUESTIONS[0]}]
    body = GREEDY | {"messages": talk, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    whole = await client.whole(CHAT, body)
    chunks = await client.stream(CHAT, body, 4000)
    rows = [row for chunk in chunks for c in chunk["choices"] for row in _logprobs(c)]
    assert [row["token"] for row in rows] == [r["token"] for r in _logprobs(whole["choices"][0])]
    assert all(len(row["top_logprobs"]) == 2 for row in rows)


SYSTEM = "Answer in one paragraph."
TYPED: dict[str, dict[str, Any]] = {
    MESSAGES: {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": QUESTIONS[0]}]},
            {"role": "assistant", "content": "Which sea?"},
            {"role": "user", "content": QUESTIONS[2]},
        ],
        "system": SYSTEM, "max_tokens": 24,
    },
    RESPONSES: {
        "input": [
            {"role": "user", "content": QUESTIONS[0]},
            {"role": "assistant", "content": "Which sea?"},
            {"role": "user", "content": [{"type": "input_text", "text": QUESTIONS[2]}]},
        ],
        "instructions": SYSTEM, "max_output_tokens": 24,
    },
}  # fmt: skip


@pytest.mark.parametrize("path", TYPED)
async def test_typed_stream_is_unbroken(client: MigratingClient, path: str) -> None:
    body = TYPED[path] | {"model": MODEL, "temperature": 0}
    whole = await client.whole(path, body)
    await client.content(path, body)
    events = [match.end() for match in re.finditer(rb"\n\n", client.raw)]
    await client.unbroken(path, body, whole, events[-3] - 5)
    await client.unbroken(path, body, whole, events[6])


def _logprobs(choice: dict[str, Any]) -> list[dict[str, Any]]:
    return (choice.get("logprobs") or {}).get("content") or []
