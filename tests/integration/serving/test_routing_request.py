"""Routing requests that the frontend creates, without a server."""

import json
from array import array
from dataclasses import replace

import pytest

from hpc_dynamo.config import Config, Policy, TopologyKind
from hpc_dynamo.frontend.request_translator import RequestTranslator, read_body
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import HttpRequest
from hpc_dynamo.preprocess import TokenIdsOnly
from hpc_dynamo.router import ModelAvailability, RoutingRequest, RunView, block_hashes

IDS = list(range(100))
VIEW = RunView(models={"": ModelAvailability(context_tokens=1000)})


def config(policy: Policy = Policy.kv, kind: TopologyKind = TopologyKind.disaggregated) -> Config:
    default = Config()
    return replace(
        default,
        router=replace(default.router, policy=policy),
        topology=replace(default.topology, kind=kind),
    )


async def asked(config: Config, prompt: object, **fields: object) -> RoutingRequest:
    """Return the routing request of a completion without a tokenizer."""
    generation = RequestTranslator(config, TokenIdsOnly(), FrontendStats())
    body = json.dumps({"prompt": prompt, **fields}).encode()
    request = HttpRequest("POST", "/v1/completions", "", {}, body, "")
    return (await generation.engine_request(request, read_body(body, 10_000), "id", VIEW)).routing


@pytest.mark.parametrize("prompt", [IDS, [IDS]])
async def test_token_ids_are_routed_by_cache_without_a_tokenizer(prompt: object) -> None:
    blocks = block_hashes(array("I", IDS).tobytes(), Config().router.block_tokens)
    assert await asked(config(), prompt) == RoutingRequest(
        prompt_tokens=100, block_hashes=blocks, may_disaggregate=True
    )


@pytest.mark.parametrize("prompt", ["text", ["text"], [-1]])
async def test_prompt_without_ids_is_routed_by_load(prompt: object) -> None:
    assert await asked(config(), prompt) == RoutingRequest(may_disaggregate=True)


@pytest.mark.parametrize("prompt", [["text", "more"], [], [[1], "text"], None])
async def test_several_prompts_without_ids_are_not_disaggregated(prompt: object) -> None:
    assert await asked(config(), prompt) == RoutingRequest(may_disaggregate=False)


@pytest.mark.parametrize("policy", [Policy.least_loaded, Policy.round_robin])
async def test_unneeded_ids_are_not_computed(policy: Policy) -> None:
    assert await asked(config(policy, TopologyKind.aggregated), IDS) == RoutingRequest(
        may_disaggregate=False
    )
    assert await asked(config(policy), IDS, n=2) == RoutingRequest(may_disaggregate=False)


@pytest.mark.parametrize("policy", Policy)
async def test_prompt_beyond_context_is_not_disaggregated(policy: Policy) -> None:
    """This applies to every policy: the prefill would be wasted."""
    assert (await asked(config(policy), IDS * 10)).may_disaggregate is False
    assert (await asked(config(policy), IDS)).may_disaggregate is True
