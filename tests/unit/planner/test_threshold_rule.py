"""Needs by thresholds alone."""

import pytest

from hpc_dynamo.config import Planner
from hpc_dynamo.planner.signals import ExpectedLoad, Signals
from hpc_dynamo.planner.target_split import WorkerNeed
from hpc_dynamo.planner.threshold_rule import ThresholdRule, prefill_wait_s
from tests.unit.planner.signals import saw

CALM = {"requests": 30, "prompt_tokens": 1000.0, "kv_usage": 0.6}


def test_a_prompt_waits_what_is_ahead_over_what_comes() -> None:
    """Two workers have three prompts of 1,000 tokens each before them, one of which they compute,
    and a token of two is cached: 8 prompts of 500 tokens, at one prompt a second."""
    given = {"requests": 30, "prompt_tokens": 1000.0, "hit_rate": 0.5}
    assert prefill_wait_s(
        saw(0, 2, 2, **given, prefill_requests=3.0, prefill_tokens=3000.0)
    ) == pytest.approx(8.0)


def test_a_long_prompt_that_is_computed_does_not_wait() -> None:
    assert (
        prefill_wait_s(saw(0, 2, 2, **CALM, prefill_requests=1.0, prefill_tokens=90_000.0)) == 0.0
    )


def test_without_a_tokenizer_prompts_count_alike() -> None:
    assert prefill_wait_s(
        saw(0, 2, 2, requests=30, prefill_requests=3.0, queued_requests=4)
    ) == pytest.approx(8.0)


def need(seen: Signals) -> WorkerNeed:
    return ThresholdRule(Planner()).need(seen, ExpectedLoad())


@pytest.mark.parametrize(
    ("waits_s", "prefill"), [(0.5, 2.0), (1.0, 2.0), (2.0, 4.0), (8.0, 6.0), (1e9, 11.0)]
)
def test_one_worker_more_and_one_for_each_doubling(waits_s: float, prefill: float) -> None:
    seen = saw(0, 2, 2, **CALM, prefill_requests=2.0, prefill_tokens=1000.0 * waits_s)
    assert need(seen).prefill == pytest.approx(prefill)


def test_an_idle_prefill_worker_can_be_spared() -> None:
    assert need(saw(0, 3, 2, **CALM)).prefill < 2
    seen = saw(0, 3, 2, **CALM, prefill_requests=2.0, prefill_tokens=200.0)
    assert need(seen).prefill == 3


@pytest.mark.parametrize(("usage", "decode"), [(0.4, 4.0), (0.8, 4.0), (1.0, 5.0), (0.2, 1.0)])
def test_decode_workers_by_how_full_their_caches_are(usage: float, decode: float) -> None:
    assert need(saw(0, 2, 4, kv_usage=usage)).decode == pytest.approx(decode)


def test_slots_are_used_up_before_caches() -> None:
    """Then the router's line is the decode workers', too."""
    seen = saw(
        0, 2, 4, requests=30, prompt_tokens=500.0, kv_usage=0.06, slot_usage=1.2, queued_requests=90
    )
    assert need(seen).decode == pytest.approx(6.0)
    assert need(seen).prefill < 2


def test_what_waits_within_the_engines_counts_as_if_it_ran() -> None:
    seen = saw(0, 2, 4, kv_usage=0.9, running=10.0, waiting=10.0)
    assert need(seen).decode == pytest.approx(9.0)
