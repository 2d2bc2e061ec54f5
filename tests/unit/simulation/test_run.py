"""A whole job in virtual time: the same each run, every request ends once, flips lose none."""

from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from hpc_dynamo.config import Role
from hpc_dynamo.planner.signals import Decision, Demand, Move, Signals, Wanted
from hpc_dynamo.simulation import Engine, Job, Phase, Request, Targets, simulate, synthetic
from hpc_dynamo.simulation.outcome import Outcome
from hpc_dynamo.simulation.pool import Flipping
from hpc_dynamo.simulation.split import search
from hpc_dynamo.simulation.worker import Limits
from hpc_dynamo.timing_model import PROFILES

TARGETS = Targets(ttft_s=1.0, itl_s=0.03)
ENGINE = Engine(Limits(cache_tokens=200_000, transfer_s_per_token=1e-6), PROFILES["h100-8b"])


def job(prefill: int, decode: int) -> Job:
    return Job(ENGINE, {Role.prefill: prefill, Role.decode: decode}, TARGETS, interval_s=5.0)


def load(seconds: float = 60.0, rate_hz: float = 8.0) -> list[Request]:
    """Every third prompt begins as the third before."""
    drawn = synthetic([Phase(seconds, rate_hz, 3000, 100)], seed=7)
    return [replace(r, blocks=(i % 3, 3 + i % 3) * (r.prompt >= 1024)) for i, r in enumerate(drawn)]


class Swinging:
    """A planner that moves a worker to and fro at every interval."""

    def __init__(self) -> None:
        self.seen = list[Signals]()

    def decide(self, seen: Signals) -> Decision:
        self.seen.append(seen)
        old, new = (Role.prefill, Role.decode)[:: 1 if seen.prefill > seen.decode else -1]
        return Decision(
            seen=seen,
            expected=Demand(),
            wanted=Wanted(prefill=1, decode=1),
            move=Move(count=1, old=old, new=new),
        )


def ends(outcome: Outcome) -> list[tuple[float, int, int, float, float]]:
    return sorted((s.at, s.prompt, s.answer, s.first, s.end) for s in outcome.seen)


def test_a_run_is_the_same_each_time() -> None:
    first, second = (simulate(job(2, 2), load()) for _ in range(2))
    assert ends(first) == ends(second)
    assert first.roles == second.roles


@pytest.mark.parametrize("restart", [False, True])
def test_flips_lose_nothing(restart: bool) -> None:
    asked, planner = load(), Swinging()
    flipping = Flipping(turn_s=1.0, restart=restart)
    outcome = simulate(replace(job(2, 2), flipping=flipping), asked, planner)
    assert outcome.flips > 5
    assert outcome.failed == outcome.lost == 0
    assert Counter((r.at, r.prompt, r.answer) for r in asked) == Counter(
        (s.at, s.prompt, s.answer) for s in outcome.seen
    )
    for seen in outcome.seen:
        assert seen.at < seen.first <= seen.end
    assert {prefill + decode for _, prefill, decode in outcome.roles[4:]} <= {3, 4}


def test_a_flip_that_cannot_drain_is_undone() -> None:
    long = [Request(0.1 * i, 1000, 5000) for i in range(20)]
    flipping = Flipping(turn_s=0.1, drain_s=2.0)

    class Once(Swinging):
        def decide(self, seen: Signals) -> Decision:
            move = Move(count=1, old=Role.decode, new=Role.prefill)
            made = super().decide(seen)
            return msgspec.structs.replace(made, move=None if self.seen[1:] else move)

    outcome = simulate(replace(job(1, 2), flipping=flipping), long, Once())
    assert (outcome.flips, outcome.failed, outcome.lost) == (0, 1, 0)
    assert outcome.roles[-1][1:] == (1, 2)


def test_the_planner_sees_what_there_was() -> None:
    planner, asked = Swinging(), load()
    outcome = simulate(job(2, 2), asked, planner)
    intervals = planner.seen
    assert [s.seconds for s in intervals] == pytest.approx([5.0] * len(intervals))
    until = 5.0 * len(intervals)
    came = [r for r in asked if r.at <= until]
    assert sum(s.requests for s in intervals) == len(came)
    mean = sum(s.requests * s.prompt_tokens for s in intervals) / len(came)
    assert mean == pytest.approx(sum(r.prompt for r in came) / len(came))
    firsts = [s for s in outcome.seen if s.first <= 5.0]
    assert intervals[0].ttft_s == pytest.approx(sum(s.ttft_s for s in firsts) / len(firsts))


@pytest.mark.parametrize(("prompt", "answer", "best"), [(12_000, 8, 5), (200, 1500, 1)])
def test_the_search_finds_the_obvious_split(prompt: int, answer: int, best: int) -> None:
    """Six workers, under all that they can: prompts without answers, answers without prompts."""
    rate = {12_000: 8.0, 200: 20.0}[prompt]
    asked, said = synthetic([Phase(30.0, rate, prompt, answer)], seed=1), list[object]()
    targets = Targets(ttft_s=1.5, itl_s=0.012)
    base = replace(job(1, 1), targets=targets)
    tried = search(base, 6, asked, said.append, lambda seen: None)
    assert len(tried) == len(said) == 6
    split = next(t.workers for t in tried if Role.prefill in t.workers)
    assert split[Role.prefill] == best, [(t.workers, t.outcome.goodput_hz) for t in tried]
