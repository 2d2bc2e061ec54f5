"""Needs by thresholds."""

import pytest

from hpc_dynamo.config import Planner
from hpc_dynamo.planner.signals import ExpectedLoad, Signals
from hpc_dynamo.planner.target_split import WorkerNeed
from hpc_dynamo.planner.threshold_rule import ThresholdRule, prefill_wait_s
from tests.unit.planner.signals import saw

CALM = {"requests": 30, "prompt_tokens": 1000.0, "kv_usage": 0.6}


def test_prompt_wait_is_waiting_work_per_arrival_rate() -> None:
    """Two workers have three prompts of 1,000 tokens each, of which they compute one,
    and a token of two is cached: 8 prompts of 500 tokens, at one prompt per second."""
    given = {"requests": 30, "prompt_tokens": 1000.0, "hit_rate": 0.5}
    assert prefill_wait_s(
        saw(0, 2, 2, **given, prefill_requests=3.0, prefill_tokens=3000.0)
    ) == pytest.approx(8.0)


def test_computed_long_prompt_does_not_wait() -> None:
    assert (
        prefill_wait_s(saw(0, 2, 2, **CALM, prefill_requests=1.0, prefill_tokens=90_000.0)) == 0.0
    )


def test_prompts_without_tokenizer_count_equally() -> None:
    assert prefill_wait_s(
        saw(0, 2, 2, requests=30, prefill_requests=3.0, queued_requests=4)
    ) == pytest.approx(8.0)


def need(seen: Signals) -> WorkerNeed:
    return ThresholdRule(Planner()).need(seen, ExpectedLoad())


@pytest.mark.parametrize(
    ("waits_s", "prefill"), [(0.5, 2.0), (1.0, 2.0), (2.0, 4.0), (8.0, 6.0), (1e9, 11.0)]
)
def test_each_doubling_of_the_wait_needs_one_more_worker(waits_s: float, prefill: float) -> None:
    seen = saw(0, 2, 2, **CALM, prefill_requests=2.0, prefill_tokens=1000.0 * waits_s)
    assert need(seen).prefill == pytest.approx(prefill)


def test_idle_prefill_worker_can_be_released() -> None:
    assert need(saw(0, 3, 2, **CALM)).prefill < 2
    seen = saw(0, 3, 2, **CALM, prefill_requests=2.0, prefill_tokens=200.0)
    assert need(seen).prefill == 3


@pytest.mark.parametrize(("usage", "decode"), [(0.4, 4.0), (0.8, 4.0), (1.0, 5.0), (0.2, 1.0)])
def test_decode_need_follows_kv_usage(usage: float, decode: float) -> None:
    assert need(saw(0, 2, 4, kv_usage=usage)).decode == pytest.approx(decode)


def test_full_slots_count_like_full_caches() -> None:
    """The router's queue then waits for decode workers."""
    seen = saw(
        0, 2, 4, requests=30, prompt_tokens=500.0, kv_usage=0.06, slot_usage=1.2, queued_requests=90
    )
    assert need(seen).decode == pytest.approx(6.0)
    assert need(seen).prefill < 2


def test_requests_waiting_in_engines_count_as_running() -> None:
    seen = saw(0, 2, 4, kv_usage=0.9, running=10.0, waiting=10.0)
    assert need(seen).decode == pytest.approx(9.0)
