"""Decisions over consecutive intervals."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_dynamo.config import Planner as Rules
from hpc_dynamo.config import PlannerMode, PriorityTarget, Role
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner.planner import RolePlanner
from hpc_dynamo.planner.signals import ExpectedLoad, PlannerDecision
from tests.unit.planner.signals import Linear, saw, served

Load = dict[str, Any]
SLA = Rules(mode=PlannerMode.sla)
PROMPTS: Load = {"requests": 750, "prompt_tokens": 6000.0, "answer_tokens": 50.0}
ANSWERS: Load = {"requests": 3600, "prompt_tokens": 500.0, "answer_tokens": 900.0, "running": 60.0}


def course(rules: Rules, loads: list[Load], have: list[int]) -> list[PlannerDecision]:
    """Decide once per load; moves end before the next one. `have` becomes the last split."""
    planner, decisions = RolePlanner(rules, Linear()), list[PlannerDecision]()
    for number, load in enumerate(loads):
        decision = planner.decide(saw(number, *have, **load))
        if decision.move:
            more = decision.move.count * (1 if decision.move.new is Role.prefill else -1)
            have[:] = have[0] + more, have[1] - more
        decisions.append(decision)
    return decisions


def test_changing_load_moves_workers_there_and_back() -> None:
    have = [8, 8]
    course(SLA, [PROMPTS] * 10, have)
    heavy = have[0]
    course(SLA, [ANSWERS] * 10, have)
    assert heavy > 8 > have[0]


@settings(max_examples=40, deadline=None)
@given(
    *(st.floats(1.0, 40.0), st.floats(300, 8000), st.floats(20, 900), st.integers(1, 15)),
    *(st.sampled_from(PriorityTarget), st.integers(0, 10**6)),
)
def test_load_within_hysteresis_never_moves_workers_back(
    rate: float, prompt: float, answer: float, prefill: int, protect: PriorityTarget, seed: int
) -> None:
    """Each value of a load varies by up to 3 %. Only moves after 30 intervals count:
    a split that did not fit has been mended then, and the workers are known."""
    planner = RolePlanner(Rules(mode=PlannerMode.sla, priority_target=protect), Linear())
    directions, dice = set[Role | None](), random.Random(seed)
    for number in range(60):
        load = ExpectedLoad(
            rate_hz=rate * dice.uniform(0.97, 1.03),
            prompt_tokens=prompt * dice.uniform(0.97, 1.03),
            answer_tokens=answer * dice.uniform(0.97, 1.03),
        )
        move = planner.decide(served(load, Linear(), (prefill, 16 - prefill))).move
        if move:
            prefill += move.count if move.new is Role.prefill else -move.count
        if move and number >= 30:
            directions.add(move.new)
    assert len(directions) <= 1


def test_move_is_the_smallest_of_the_stabilization_intervals() -> None:
    one, two, three = course(
        Rules(mode=PlannerMode.sla, stabilization_intervals=3), [PROMPTS] * 3, [4, 12]
    )
    assert one.move is two.move is None
    assert two.reason == "wanted in 2 of 3 intervals"
    assert three.move
    assert three.move.count <= min(d.target.prefill - 4 for d in (one, two, three))


def test_planner_during_a_role_change_decides_nothing() -> None:
    planner = RolePlanner(Rules(mode=PlannerMode.sla, stabilization_intervals=1), Linear())
    assert planner.decide(saw(0, 4, 12, **PROMPTS)).move
    moving = planner.decide(saw(1, 4, 10, changing_role=2, **PROMPTS))
    assert (moving.move, moving.reason) == (None, "a role change is in progress")
    assert planner.decide(saw(2, 4, 12, **PROMPTS)).move, "a move that failed is wanted again"


def test_both_modes_decide() -> None:
    by_load = RolePlanner(Rules(mode=PlannerMode.load, stabilization_intervals=1))
    move = by_load.decide(
        saw(0, 2, 2, **PROMPTS, prefill_requests=9.0, prefill_tokens=90_000.0)
    ).move
    assert move
    assert move.new is Role.prefill
    with pytest.raises(ConfigError, match=r"planner.profile=FILE"):
        RolePlanner(SLA)


def test_role_below_its_minimum_gets_workers_at_once() -> None:
    """The stabilization intervals do not apply; a recovered worker is one more then."""
    decision = RolePlanner(Rules(mode=PlannerMode.load, stabilization_intervals=5)).decide(
        saw(0, 0, 3)
    )
    assert decision.move
    assert (decision.move.new, decision.reason) == (
        Role.prefill,
        "a role has fewer workers than its minimum",
    )


def test_decision_reports_missing_and_spare_workers() -> None:
    planner = RolePlanner(Rules(mode=PlannerMode.sla), Linear())
    lacking = planner.decide(saw(0, 2, 2, **(PROMPTS | {"requests": 3000}))).gap
    assert lacking
    assert (lacking.missing > 40, lacking.spare, lacking.role) == (True, 0, Role.prefill)
    idle = (
        RolePlanner(Rules(mode=PlannerMode.sla), Linear())
        .decide(saw(0, 2, 14, requests=1, running=0.0))
        .gap
    )
    assert idle
    assert (idle.missing, idle.spare) == (0, 14)
