"""Split of the workers between the roles."""

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.config import Planner, PriorityTarget
from hpc_dynamo.planner.target_split import ReadyWorkers, WorkerNeed, target_split

MARGIN = Planner().hysteresis
protects, needs = st.sampled_from(PriorityTarget), st.floats(0, 40)


@given(needs, needs, st.integers(0, 32), st.integers(0, 32), protects)
def test_split_keeps_the_total_and_the_minimum(
    prefill: float, decode: float, p: int, d: int, protect: PriorityTarget
) -> None:
    wanted = target_split(
        WorkerNeed(prefill, decode), ReadyWorkers(p, d), Planner(priority_target=protect)
    )
    assert wanted.prefill + wanted.decode == p + d
    if p + d >= 2:
        assert min(wanted.prefill, wanted.decode) >= min(p, d, 1)


@given(
    *(st.floats(0.5, 20), st.floats(0.5, 20), st.integers(2, 32), protects),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=20, max_size=40),
    st.floats(0, 1),
)
def test_needs_within_hysteresis_do_not_flap(
    prefill: float,
    decode: float,
    total: int,
    protect: PriorityTarget,
    noise: list[tuple[float, float]],
    start: float,
) -> None:
    """Ratios then vary by less than 1 + hysteresis: no worker moves back."""
    config, most = Planner(priority_target=protect), sqrt(1 + MARGIN) - 1e-6
    have, directions = max(1, min(total - 1, round(start * total))), set[bool]()
    for a, b in noise:
        need = WorkerNeed(prefill * most**a, decode * most**b)
        wanted = target_split(need, ReadyWorkers(have, total - have), config).prefill
        if wanted != have:
            directions.add(wanted > have)
        have = wanted
    assert len(directions) <= 1


def test_split_without_shortage_does_not_change() -> None:
    wanted = target_split(WorkerNeed(0.2, 11.9), ReadyWorkers(4, 12), Planner())
    assert (wanted.prefill, wanted.shortfall) == (4, "")


def test_short_role_moves_halfway_to_even_pressure() -> None:
    """Prefill needs a fifth worker of 16; 6 and 10 would have equal pressure."""
    wanted = target_split(WorkerNeed(4.5, 7.5), ReadyWorkers(4, 12), Planner())
    assert (wanted.prefill, wanted.decode) == (5, 11)
    assert "prefill is short" in wanted.reason
    assert target_split(WorkerNeed(4.2, 2.8), ReadyWorkers(4, 12), Planner()).prefill == 7, (
        "even: 10 and 6"
    )
    assert target_split(WorkerNeed(2.8, 4.2), ReadyWorkers(12, 4), Planner()).decode == 7


def test_short_role_gets_at_least_its_need() -> None:
    assert target_split(WorkerNeed(9.5, 4.0), ReadyWorkers(4, 12), Planner()).prefill == 10, (
        "half the way: 8"
    )


def test_move_with_little_effect_is_not_made() -> None:
    """Prefill lacks 3 % of its load; 3 more workers reduce its pressure from 1.02 to 0.99."""
    needs = WorkerNeed(40.9, 7.2)
    assert target_split(needs, ReadyWorkers(40, 9), Planner()).prefill == 40
    assert target_split(needs, ReadyWorkers(40, 9), Planner(hysteresis=0.01)).prefill == 41


@pytest.mark.parametrize(
    ("protect", "prefill"), [(PriorityTarget.ttft, 12), (PriorityTarget.itl, 8)]
)
def test_insufficient_workers_keep_the_priority_target_and_name_the_other(
    protect: PriorityTarget, prefill: int
) -> None:
    wanted = target_split(
        WorkerNeed(12.0, 12.0), ReadyWorkers(8, 8), Planner(priority_target=protect)
    )
    assert wanted.prefill == prefill
    given_up = "ITL: decode" if protect is PriorityTarget.ttft else "TTFT: prefill"
    assert f"{given_up} needs 12.0 workers and gets" in wanted.shortfall


def test_minimum_of_each_role_is_kept() -> None:
    config = Planner(
        priority_target=PriorityTarget.ttft, min_prefill_workers=2, min_decode_workers=3
    )
    assert target_split(WorkerNeed(40.0, 0.0), ReadyWorkers(2, 6), config).decode == 3
    assert target_split(WorkerNeed(0.0, 40.0), ReadyWorkers(6, 2), config).prefill == 2


def test_role_without_workers_gets_one() -> None:
    assert target_split(WorkerNeed(0.0, 0.0), ReadyWorkers(0, 3), Planner()).prefill >= 1
    assert target_split(WorkerNeed(0.0, 0.0), ReadyWorkers(3, 0), Planner()).decode >= 1
