"""Simulated jobs: reproducible, with one end per request and lossless role changes."""

from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from hpc_dynamo.config import Role
from hpc_dynamo.messages import PrefixCaches
from hpc_dynamo.planner.signals import ExpectedLoad, PlannerDecision, RoleMove, Signals, TargetSplit
from hpc_dynamo.simulation import (
    EngineModel,
    LatencyTargets,
    LoadPhase,
    SimulatedJob,
    TraceRequest,
    simulate,
    synthetic_load,
)
from hpc_dynamo.simulation.pool import RoleChangeModel
from hpc_dynamo.simulation.result import SimulationResult
from hpc_dynamo.simulation.split_search import search_splits
from hpc_dynamo.simulation.worker import EngineSizes
from hpc_dynamo.timing_model import PROFILES

TARGETS = LatencyTargets(ttft_s=1.0, itl_s=0.03)
ENGINE = EngineModel(
    EngineSizes(cache_tokens=200_000, transfer_s_per_token=1e-6), PROFILES["h100-8b"]
)


def job(prefill: int, decode: int) -> SimulatedJob:
    return SimulatedJob(
        ENGINE, {Role.prefill: prefill, Role.decode: decode}, TARGETS, interval_s=5.0
    )


def load(seconds: float = 60.0, rate_hz: float = 8.0) -> list[TraceRequest]:
    """Return prompts of which every third one starts like the third before."""
    drawn = synthetic_load([LoadPhase(seconds, rate_hz, 3000, 100)], seed=7)
    return [
        replace(r, blocks=(i % 3, 3 + i % 3) * (r.prompt_tokens >= 1024))
        for i, r in enumerate(drawn)
    ]


class Swinging:
    """A planner that moves a worker back and forth at every interval."""

    def __init__(self) -> None:
        self.seen = list[Signals]()

    def decide(self, seen: Signals) -> PlannerDecision:
        self.seen.append(seen)
        old, new = (Role.prefill, Role.decode)[:: 1 if seen.prefill > seen.decode else -1]
        return PlannerDecision(
            signals=seen,
            expected=ExpectedLoad(),
            target=TargetSplit(prefill=1, decode=1),
            move=RoleMove(count=1, old=old, new=new),
        )


def ends(outcome: SimulationResult) -> list[tuple[float, int, int, float, float]]:
    return sorted(
        (s.at, s.prompt_tokens, s.response_tokens, s.first_token_at, s.ended_at)
        for s in outcome.results
    )


def test_simulation_is_reproducible() -> None:
    first, second = (simulate(job(2, 2), load()) for _ in range(2))
    assert ends(first) == ends(second)
    assert first.roles == second.roles


@pytest.mark.parametrize("restart", [False, True])
def test_role_changes_lose_no_requests(restart: bool) -> None:
    asked, planner = load(), Swinging()
    flipping = RoleChangeModel(role_change_s=1.0, restart_engine=restart)
    outcome = simulate(replace(job(2, 2), role_change=flipping), asked, planner)
    assert outcome.role_changes > 5
    assert outcome.failed_role_changes == outcome.failed_requests == 0
    assert Counter((r.at, r.prompt_tokens, r.response_tokens) for r in asked) == Counter(
        (s.at, s.prompt_tokens, s.response_tokens) for s in outcome.results
    )
    for seen in outcome.results:
        assert seen.at < seen.first_token_at <= seen.ended_at
    assert {prefill + decode for _, prefill, decode in outcome.roles[4:]} <= {3, 4}


def test_role_change_that_cannot_drain_is_undone() -> None:
    long = [TraceRequest(0.1 * i, 1000, 5000) for i in range(20)]
    flipping = RoleChangeModel(role_change_s=0.1, drain_s=2.0)

    class Once(Swinging):
        def decide(self, seen: Signals) -> PlannerDecision:
            move = RoleMove(count=1, old=Role.decode, new=Role.prefill)
            made = super().decide(seen)
            return msgspec.structs.replace(made, move=None if self.seen[1:] else move)

    outcome = simulate(replace(job(1, 2), role_change=flipping), long, Once())
    assert (outcome.role_changes, outcome.failed_role_changes, outcome.failed_requests) == (0, 1, 0)
    assert outcome.roles[-1][1:] == (1, 2)


def test_planner_receives_the_simulated_load() -> None:
    planner, asked = Swinging(), load()
    outcome = simulate(job(2, 2), asked, planner)
    intervals = planner.seen
    assert [s.seconds for s in intervals] == pytest.approx([5.0] * len(intervals))
    until = 5.0 * len(intervals)
    came = [r for r in asked if r.at <= until]
    assert sum(s.requests for s in intervals) == len(came)
    mean = sum(s.requests * s.prompt_tokens for s in intervals) / len(came)
    assert mean == pytest.approx(sum(r.prompt_tokens for r in came) / len(came))
    firsts = [s for s in outcome.results if s.first_token_at <= 5.0]
    assert intervals[0].ttft_s == pytest.approx(sum(s.ttft_s for s in firsts) / len(firsts))


@pytest.mark.parametrize(("prompt", "answer", "best"), [(12_000, 8, 5), (200, 1500, 1)])
def test_search_finds_the_obvious_split(prompt: int, answer: int, best: int) -> None:
    """Six workers below their capacity: long prompts only, or long responses only."""
    rate = {12_000: 8.0, 200: 20.0}[prompt]
    asked, said = synthetic_load([LoadPhase(30.0, rate, prompt, answer)], seed=1), list[object]()
    targets = LatencyTargets(ttft_s=1.5, itl_s=0.012)
    base = replace(job(1, 1), targets=targets)
    tried = search_splits(base, 6, asked, said.append, lambda seen: None)
    assert len(tried) == len(said) == 6
    split = next(t.workers for t in tried if Role.prefill in t.workers)
    assert split[Role.prefill] == best, [(t.workers, t.outcome.goodput_hz) for t in tried]


def test_steered_ranks_hit_like_workers_and_unsteered_ones_less() -> None:
    """Each of 16 prompts is repeated; a rank has room for four of them."""
    groups = [TraceRequest(i * 0.02, 1024, 30, (i % 16, 16 + i % 16)) for i in range(200)]
    engine = replace(ENGINE, sizes=replace(ENGINE.sizes, cache_tokens=4096))
    one = SimulatedJob(engine, {Role.aggregated: 8}, TARGETS)
    ranked = replace(one, workers={Role.aggregated: 2}, caches=PrefixCaches(4))
    unsteered = replace(ranked, caches=PrefixCaches(4, steered=False))
    rates = [simulate(each, groups).hit_rate for each in (one, ranked, unsteered)]
    assert rates[0] == rates[1] > 0.4 > rates[2]
