"""Streams of a prefill and a decode worker of real vLLM continue after a cut.

Whole processes are killed and stopped in tests/faults/test_vllm.py, which takes longer.
"""

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
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
TALK = [{"role": "user", "content": "Tell a story about the sea and its ships."}]


@pytest.fixture
async def client(served: Served) -> AsyncIterator[MigratingClient]:
    """Return a client whose two decode workers are the same engine."""
    urls = served.workers()
    decode = (Role.decode, urls["decode"])
    workers = [(Role.prefill, urls["prefill"]), decode, decode]
    config = Config(topology=Topology(kind=TopologyKind.disaggregated))
    tokenizer = Preprocessor.load(provisioned().model)
    async with migrating(config, VllmPdProtocol(), workers, served.token, tokenizer) as made:
        yield made


async def test_chat_is_unbroken_after_a_cut(client: MigratingClient) -> None:
    body = GREEDY | {"messages": TALK}
    whole = await client.whole(CHAT, body)
    for cut in (900, 3000):
        assert_unbroken(await client.stream(CHAT, body, cut), whole)


async def test_completion_with_stop_string_is_unbroken(client: MigratingClient) -> None:
    body = GREEDY | {"prompt": "One, two, three, four,"}
    text = text_of(await client.whole(COMPLETIONS, body))
    stopped = body | {"stop": [text[40:43], "never"]}
    whole = await client.whole(COMPLETIONS, stopped)
    assert_unbroken(await client.stream(COMPLETIONS, stopped, 1500), whole)


TYPED: dict[str, dict[str, Any]] = {
    "/v1/messages": {"messages": TALK, "system": "Be brief.", "max_tokens": 16},
    "/v1/responses": {"input": TALK, "instructions": "Be brief.", "max_output_tokens": 16},
}


@pytest.mark.parametrize("path", TYPED)
async def test_typed_stream_is_unbroken(client: MigratingClient, path: str) -> None:
    body = TYPED[path] | {"model": MODEL, "temperature": 0}
    whole = await client.whole(path, body)
    await client.unbroken(path, body, whole)
    events = [match.end() for match in re.finditer(rb"\n\n", client.raw)]
    await client.unbroken(path, body, whole, events[8])
