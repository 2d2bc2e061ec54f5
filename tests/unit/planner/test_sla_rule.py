"""Needs by a profile and targets."""

import msgspec
import pytest

from hpc_dynamo.config import Planner
from hpc_dynamo.planner.queueing import MAX_UTILIZATION, wait_s
from hpc_dynamo.planner.signals import ExpectedLoad, Signals
from hpc_dynamo.planner.sla_rule import HEADROOM, SlaRule
from hpc_dynamo.planner.target_split import WorkerNeed
from tests.unit.planner.signals import Linear, saw, served

CONFIG = Planner(ttft_s=2.0, itl_s=0.03)
DEMAND = ExpectedLoad(rate_hz=10.0, prompt_tokens=4000.0, answer_tokens=200.0)
SLOWER = 1.5


def seen_of(worker: Linear, prefill: int, decode: int, hits: float = 0.0) -> Signals:
    return served(DEMAND, worker, (prefill, decode), hit_rate=hits)


def after(sla: SlaRule, seen: Signals, intervals: int = 20) -> WorkerNeed:
    need = WorkerNeed(0, 0)
    for _ in range(intervals):
        need = sla.need(seen, DEMAND)
    return need


def test_need_meets_both_targets() -> None:
    """Prefill takes the time of 3.3 workers. Decode generates 2,000 tokens per second."""
    worker = Linear()
    need = after(SlaRule(CONFIG, worker), seen_of(worker, 6, 6))
    service = worker.prefill_s(4000)
    assert DEMAND.rate_hz * service <= need.prefill * MAX_UTILIZATION
    assert wait_s(DEMAND.rate_hz, service, need.prefill) <= CONFIG.ttft_s
    each = DEMAND.rate_hz * DEMAND.answer_tokens / need.decode  # tokens per second and worker
    planned = HEADROOM * CONFIG.itl_s
    sequences = each * planned
    assert worker.itl_s(sequences, 4100) <= planned * 1.01
    assert worker.itl_s(sequences * 1.05, 4100) > planned
    assert need.unreachable == ""


def test_cached_share_is_learned() -> None:
    worker = Linear()
    cold = after(SlaRule(CONFIG, worker), seen_of(worker, 6, 6))
    warm = after(SlaRule(CONFIG, worker), seen_of(worker, 6, 6, hits=0.6))
    assert warm.prefill < 0.6 * cold.prefill
    assert warm.decode == pytest.approx(cold.decode)


def test_slower_workers_are_detected() -> None:
    sla = SlaRule(CONFIG, Linear())
    need = after(sla, seen_of(Linear(SLOWER), 8, 8), 40)
    assert sla.correction.itl_factor == pytest.approx(SLOWER, rel=0.05)
    assert sla.correction.prefill_factor == pytest.approx(SLOWER, rel=0.05)
    as_told = after(SlaRule(CONFIG, Linear()), seen_of(Linear(), 8, 8))
    as_it_is = after(SlaRule(CONFIG, Linear(SLOWER)), seen_of(Linear(SLOWER), 8, 8))
    assert need.prefill == pytest.approx(as_it_is.prefill, rel=0.05)
    assert need.decode == pytest.approx(as_it_is.decode, rel=0.05)
    assert need.decode > as_told.decode
    assert need.prefill > as_told.prefill


def test_unreachable_targets_are_named() -> None:
    worker = Linear()
    need = after(SlaRule(Planner(ttft_s=0.1, itl_s=0.005), worker), seen_of(worker, 6, 6))
    assert "TTFT: a single prompt takes 0.3" in need.unreachable
    assert "ITL: a single sequence takes 0.007" in need.unreachable


def test_backlog_is_added_to_the_load() -> None:
    worker, idle = Linear(), seen_of(Linear(), 6, 6)
    late = saw(
        1, 6, 6, requests=300, prompt_tokens=4000.0, answer_tokens=200.0, queued_requests=150
    )
    first, then = SlaRule(CONFIG, worker), SlaRule(CONFIG, worker)
    assert then.need(late, DEMAND).prefill > 1.3 * first.need(idle, DEMAND).prefill


def test_no_requests_need_no_workers() -> None:
    assert SlaRule(CONFIG, Linear()).need(saw(0, 2, 2, running=0.0), ExpectedLoad()) == WorkerNeed(
        0.0, 0.0
    )


def test_full_cache_limits_the_sequences() -> None:
    """5 sequences take half of a cache: 8 fit, even if tokens may be slow."""
    config = Planner(ttft_s=2.0, itl_s=1.0)
    seen = saw(0, 4, 4, requests=300, prompt_tokens=4000.0, answer_tokens=200.0,
               running=5.0, kv_usage=0.5)  # fmt: skip
    need = SlaRule(config, Linear()).need(seen, DEMAND)
    assert need.decode == pytest.approx(
        4 * 5 / Linear().itl_s(5, 4100) * Linear().itl_s(8, 4100) / 8
    )


def test_running_sequences_show_longer_responses_first() -> None:
    """No response has finished, so lengths are unknown; 4 workers have 120 sequences each."""
    seen = saw(0, 4, 4, requests=300, prompt_tokens=4000.0, answer_tokens=10.0, running=120.0)
    short = ExpectedLoad(rate_hz=10.0, prompt_tokens=4000.0, answer_tokens=10.0)
    need = SlaRule(CONFIG, Linear()).need(seen, short)
    planned = HEADROOM * CONFIG.itl_s
    most = (planned - 0.007) / (2e-5 + 4005 * 5e-8)
    made_hz = 4 * 120 / Linear().itl_s(120, 4005)
    assert need.decode == pytest.approx(made_hz * planned / most)


def test_interval_after_a_role_change_is_not_learned() -> None:
    """Its responses are partly of the old split. Intervals with a backlog do not count either."""
    slow, sla = Linear(SLOWER), SlaRule(CONFIG, Linear())
    for decode in (4, 5) * 10:
        sla.need(seen_of(slow, 8, decode), DEMAND)
    assert (sla.correction.prefill_factor, sla.correction.itl_factor) == (1.0, 1.0)
    late = msgspec.structs.replace(seen_of(slow, 8, 4), queued_requests=50)
    for _ in range(10):
        sla.need(late, DEMAND)
    assert sla.correction.prefill_factor == 1.0


def test_overloaded_slow_workers_are_detected() -> None:
    """By the profile, 4 workers are busy for 0.83 of their time; in fact, for all of it."""
    sla, slow = SlaRule(CONFIG, Linear()), seen_of(Linear(), 4, 6)
    sla.need(slow, DEMAND)
    first = sla.need(msgspec.structs.replace(slow, ttft_s=8.0), DEMAND)
    assert sla.correction.prefill_factor > 1.0
    assert first.prefill > SlaRule(CONFIG, Linear()).need(slow, DEMAND).prefill
