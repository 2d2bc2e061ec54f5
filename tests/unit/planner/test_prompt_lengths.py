"""Prompt lengths from engine counters, without a tokenizer."""

import pytest

from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.config import Router as RouterConfig
from hpc_dynamo.messages import Quantiles, WorkerLoad
from hpc_dynamo.planner.collect import collect_signals
from hpc_dynamo.planner.prompt_lengths import ComputedPrompts, PromptLengths
from hpc_dynamo.planner.threshold_rule import prefill_wait_s
from hpc_dynamo.router import RequestRouter, RoutingRequest
from hpc_dynamo.router.scheduling.limits import AdmissionLimits


def load(rank: int, prompts: int, tokens: int, asked: int = 0, hits: int = 0) -> WorkerLoad:
    count = Quantiles(count=prompts)
    return WorkerLoad(
        rank=rank, ttft=count, prompt_tokens=tokens, prefix_queries=asked, prefix_hits=hits
    )


def test_prompt_lengths_are_differences_since_the_last_call() -> None:
    lengths = PromptLengths()
    assert lengths.take([load(0, 100, 900_000, 900_000)]) == ComputedPrompts()
    assert lengths.take([load(0, 110, 930_000, 930_000, 15_000)]) == ComputedPrompts(3000, 0.5)
    assert lengths.take([load(0, 110, 930_000, 930_000, 15_000)]) == ComputedPrompts()


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ([load(0, 20, 3000), load(1, 20, 4000)], ComputedPrompts(200)),
        ([load(0, 2, 300), load(1, 30, 6000)], ComputedPrompts(200)),  # rank 0 was restarted
        ([load(1, 30, 6000)], ComputedPrompts(200)),  # rank 0 was removed
        (
            [load(0, 20, 2000), load(1, 10, 2000), load(2, 90, 9)],
            ComputedPrompts(100),
        ),  # rank 2 is new
        ([load(0, 20, 1000), load(1, 10, 2000)], ComputedPrompts()),  # counts no prompt tokens
        ([load(0, 20, 2000, asked=1000, hits=3000), load(1, 10, 2000)], ComputedPrompts(100, 1.0)),
    ],
)
def test_restarted_and_changed_workers_are_not_counted(
    after: list[WorkerLoad], found: ComputedPrompts
) -> None:
    lengths = PromptLengths()
    lengths.take([load(0, 10, 1000), load(1, 10, 2000)])
    assert lengths.take(after) == found


async def router_of_two(ask: RoutingRequest) -> RequestRouter:
    """A prefill and a decode worker, with one active request."""
    router = RequestRouter(
        TopologyKind.disaggregated,
        RouterConfig(conditional_disaggregation=False),
        AdmissionLimits(),
    )
    await router.add_worker(0, Role.prefill, "http://p")
    await router.add_worker(1, Role.decode, "http://d")
    await router.route(ask)
    return router


async def test_signals_without_tokenizer_use_engine_counters() -> None:
    router, lengths = await router_of_two(RoutingRequest()), PromptLengths()
    lengths.take([load(0, 0, 0), load(1, 0, 0)])
    decode = load(1, 10, 99, 50, 50)  # counts the prompts that it pulled, too
    seen = collect_signals(router, [load(0, 10, 30_000, 30_000, 15_000), decode], 0, 4, lengths)
    assert (seen.prompt_tokens, seen.hit_rate) == (3000, 0.5)
    assert (seen.prefill_requests, seen.prefill_tokens) == (1, 1500)
    assert prefill_wait_s(seen) == 0  # the only prompt is being computed


async def test_signals_with_tokenizer_use_own_counts() -> None:
    router, lengths = await router_of_two(RoutingRequest(prompt_tokens=640)), PromptLengths()
    lengths.take([load(0, 0, 0)])
    seen = collect_signals(router, [load(0, 10, 30_000)], 0, 4, lengths)
    assert (seen.prompt_tokens, seen.prefill_tokens) == (640, 640)
