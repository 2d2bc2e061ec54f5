"""Streams continue after any cut, with the prefill/decode protocols of all engines."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from hpc_dynamo.config import Config, Role, Topology, TopologyKind
from hpc_dynamo.dispatch import WorkerFailed
from hpc_dynamo.engines import PdProtocol
from hpc_dynamo.engines.sglang.pd_protocol import SglangPdProtocol
from hpc_dynamo.engines.trtllm.pd_protocol import TrtllmPdProtocol
from hpc_dynamo.engines.vllm.pd_protocol import VllmPdProtocol
from tests.support.cut_streams import MigratingClient, assert_unbroken, migrating, text_of
from tests.support.simulator import KEY, MODEL, simulator

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
PROMPT = "Tell me about foxes, and do not leave out any of the old stories about them."
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]},
    COMPLETIONS: {"model": MODEL, "prompt": PROMPT},
}
TYPED: dict[str, dict[str, Any]] = {
    MESSAGES: BODIES[CHAT] | {"system": "Be brief.", "max_tokens": 40, "temperature": 0},
    RESPONSES: {"model": MODEL, "input": PROMPT, "max_output_tokens": 40, "temperature": 0},
}
GREEDY: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
PROTOCOLS: dict[str, PdProtocol] = {
    "vllm": VllmPdProtocol(),
    "sglang": SglangPdProtocol(),
    "trtllm": TrtllmPdProtocol(),
}
LONG = ("--mean-output-tokens", "100000")  # an output ends at its limit
LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}


def engines(kind: str, stack: ExitStack) -> list[tuple[Role, str]]:
    if kind == "aggregated":
        return [(Role.aggregated, stack.enter_context(simulator(*LONG)).url) for _ in range(2)]
    roles = (Role.prefill, Role.decode, Role.decode)
    options = {role: (*LONG, "--pd-protocol", kind, "--role", role.value) for role in roles}
    return [(role, stack.enter_context(simulator(*options[role])).url) for role in roles]


@pytest.fixture(scope="module", params=["aggregated", *PROTOCOLS])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def started(kind: str) -> Iterator[list[tuple[Role, str]]]:
    with ExitStack() as stack:
        yield engines(kind, stack)


@pytest.fixture
async def client(kind: str, started: list[tuple[Role, str]]) -> AsyncIterator[MigratingClient]:
    split = kind in PROTOCOLS
    topology = TopologyKind.disaggregated if split else TopologyKind.aggregated
    config = Config(topology=Topology(kind=topology))
    async with migrating(config, PROTOCOLS.get(kind, VllmPdProtocol()), started, KEY) as made:
        yield made


PATHS = pytest.mark.parametrize("path", [CHAT, COMPLETIONS])


@PATHS
async def test_stream_is_unbroken_after_any_cut(client: MigratingClient, path: str) -> None:
    body = BODIES[path] | GREEDY
    whole = await client.whole(path, body)
    for cut in (300, *random.Random(path).sample(range(400, 6000), 5)):
        assert_unbroken(await client.stream(path, body, cut), whole)
    assert client.migrator.outcomes["completed"] >= 5


@PATHS
async def test_stream_ends_with_the_second_dead_worker(client: MigratingClient, path: str) -> None:
    body = BODIES[path] | GREEDY
    whole = await client.whole(path, body)
    assert_unbroken(await client.stream(path, body, 1000), whole)
    with pytest.raises(WorkerFailed):
        await client.stream(path, body, 800, 800, 800, 800)
    assert client.cutter.after == [800, 800]


# TensorRT-LLM does not split requests of these paths.
@pytest.mark.parametrize("kind", ["aggregated", "vllm", "sglang"], indirect=True, scope="module")
@pytest.mark.parametrize("path", TYPED)
async def test_typed_stream_is_unbroken(client: MigratingClient, path: str) -> None:
    body = TYPED[path]
    whole = await client.whole(path, body)
    for cut in (300, 900, 1900, 2400, 2700, 3000):
        await client.unbroken(path, body, whole, cut)
    # A stream that is cut before the client has anything is repeated.
    assert client.migrator.outcomes["completed"] >= 3


@pytest.fixture
async def pair(client: MigratingClient) -> MigratingClient:
    return client


ONE_TOPOLOGY = pytest.mark.parametrize("kind", ["aggregated"], indirect=True, scope="module")


@ONE_TOPOLOGY
@PATHS
async def test_stop_strings_are_found_after_any_cut(pair: MigratingClient, path: str) -> None:
    body = BODIES[path] | GREEDY
    words = text_of(await pair.whole(path, body)).split()
    for stop in (
        [words[30]],
        f"{words[20]} {words[21]} {words[22]}",
        ["nothing like it", words[9]],
    ):
        whole = await pair.whole(path, body | {"stop": stop})
        assert whole["choices"][0]["finish_reason"] == "stop"
        for cut in (500, 900, 1500, 1800):
            assert_unbroken(await pair.stream(path, body | {"stop": stop}, cut), whole)


@ONE_TOPOLOGY
async def test_logprobs_continue(pair: MigratingClient) -> None:
    body = BODIES[CHAT] | GREEDY | LOGPROBS
    whole = await pair.whole(CHAT, body)
    for cut in (1000, 3000, 6000, 9000):
        assert_unbroken(await pair.stream(CHAT, body, cut), whole)
    body = BODIES[COMPLETIONS] | GREEDY | {"logprobs": 2}
    whole = await pair.whole(COMPLETIONS, body)
    chunks = await pair.stream(COMPLETIONS, body, 3000)
    assert_unbroken(chunks, whole)
    for name, values in whole["choices"][0]["logprobs"].items():
        rows = (c["logprobs"] for chunk in chunks for c in chunk["choices"])
        assert [each for row in rows if row for each in row[name]] == values


@ONE_TOPOLOGY
async def test_seed_is_no_obstacle_if_greedy_or_before_first_token(pair: MigratingClient) -> None:
    for body, cut in ((GREEDY | {"seed": 1}, 900), (GREEDY | {"seed": 1, "temperature": 1}, 350)):
        whole = await pair.whole(CHAT, BODIES[CHAT] | body)
        assert_unbroken(await pair.stream(CHAT, BODIES[CHAT] | body, cut), whole)
