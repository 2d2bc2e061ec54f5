"""Selection of a worker by each policy."""

from collections import Counter
from datetime import date, timedelta
from ipaddress import IPv4Address
from math import sqrt
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.config import Policy, Role
from hpc_dynamo.router import RoutedWorker, TargetKey
from hpc_dynamo.router.scheduling.policy import POLICIES, CostInputs, select_target
from tests.unit.router.requests import BLOCK

Loads = list[dict[str, Any]]


def new_worker(rank: int, load: dict[str, Any]) -> RoutedWorker:
    return RoutedWorker(rank, Role.aggregated, "", **load)


@pytest.mark.parametrize(
    ("policy", "loads", "overlaps", "chosen"),
    [
        # The longest prefix, unless the pending work outweighs it.
        (Policy.kv, [{}, {}], {1: 2}, 1),
        (Policy.kv, [{}, {"prefill_tokens": 2 * BLOCK - 1}], {1: 2}, 1),
        (Policy.kv, [{}, {"prefill_tokens": 2 * BLOCK + 1}], {1: 2}, 0),
        (Policy.kv, [{}, {"blocks": 1}], {1: 2}, 1),
        (Policy.kv, [{}, {"blocks": 3}], {1: 2}, 0),
        (Policy.kv, [{"blocks": 1}, {"blocks": 1, "prefill_tokens": 1}], {}, 0),
        # More overlap than prompt is worth no more than the prompt.
        (Policy.kv, [{}, {"blocks": 1}], {0: 5, 1: 9}, 0),
        # Equal costs: the fewest requests, then the least recent lease.
        (Policy.kv, [{"active": 1, "last_lease_id": 1}, {"last_lease_id": 9}], {}, 1),
        (Policy.kv, [{"last_lease_id": 2}, {"last_lease_id": 1}, {"last_lease_id": 3}], {}, 1),
        (Policy.least_loaded, [{"active": 2}, {"active": 1, "blocks": 9}], {0: 5}, 1),
        (Policy.least_loaded, [{"last_lease_id": 2}, {"last_lease_id": 1}], {}, 1),
        (Policy.round_robin, [{"last_lease_id": 5}, {"last_lease_id": 4, "active": 7}], {0: 5}, 1),
        (Policy.round_robin, [{"last_lease_id": 5, "served": 1}, {"last_lease_id": 6}], {}, 0),
    ],
)
def test_policy_selects_the_cheapest_worker(
    policy: Policy, loads: Loads, overlaps: dict[TargetKey, int], chosen: int
) -> None:
    workers = [new_worker(rank, load) for rank, load in enumerate(loads)]
    inputs = CostInputs(5 * BLOCK, overlaps, BLOCK)
    assert select_target(POLICIES[policy], workers, inputs).worker.rank == chosen
    assert select_target(POLICIES[policy], workers[::-1], inputs).worker.rank == chosen


def test_weights_scale_the_terms_of_the_cost() -> None:
    workers = [new_worker(0, {"blocks": 4}), new_worker(1, {"prefill_tokens": 3 * BLOCK})]
    for overlap, decode, chosen in ((1.0, 1.0, 1), (2.0, 1.0, 0), (1.0, 0.5, 0), (0.0, 0.0, 0)):
        inputs = CostInputs(0, {}, BLOCK, overlap_weight=overlap, decode_weight=decode)
        assert select_target(POLICIES[Policy.kv], workers, inputs).worker.rank == chosen


def test_session_keeps_its_worker_when_others_change() -> None:
    workers = [new_worker(rank, {"active": rank}) for rank in range(8)]
    rule = POLICIES[Policy.session]
    needs = [CostInputs(0, {}, BLOCK, session=f"s{i}") for i in range(200)]
    before = [select_target(rule, workers, inputs).worker.rank for inputs in needs]
    assert set(before) == set(range(8))
    without = [select_target(rule, workers[:7], inputs).worker.rank for inputs in needs]
    moved = [i for i, (a, b) in enumerate(zip(before, without, strict=True)) if a != b]
    assert moved == [i for i, rank in enumerate(before) if rank == 7]
    assert (
        select_target(rule, workers[::-1], CostInputs(0, {}, BLOCK)).worker.rank == 0
    )  # no session: by load


IDS = 1200
SPACE = UUID(int=0)
SESSIONS = {
    "user-7": [f"user-{i}" for i in range(IDS)],
    "7": [str(i) for i in range(IDS)],
    "000007": [f"{i:06d}" for i in range(IDS)],
    "uuid": [str(uuid5(SPACE, str(i))) for i in range(IDS)],
    "10.0.0.7": [str(IPv4Address("10.0.0.0") + i) for i in range(IDS)],
    "2026-01-07": [(date(2020, 1, 1) + timedelta(days=i)).isoformat() for i in range(IDS)],
    "conversation 7, ü": [f"conversation {i}, ü" for i in range(IDS)],
    "7777": [str(i) * 4 for i in range(IDS)],
}


def selected_ranks(sessions: list[str], ranks: list[int]) -> list[int]:
    workers = [new_worker(rank, {}) for rank in ranks]
    rule = POLICIES[Policy.session]
    return [
        select_target(rule, workers, CostInputs(0, {}, BLOCK, session=s)).worker.rank
        for s in sessions
    ]


@pytest.mark.parametrize("workers", [2, 3, 4, 5, 9, 24])
@pytest.mark.parametrize("kind", SESSIONS)
def test_sessions_of_any_kind_spread_evenly(kind: str, workers: int) -> None:
    """Each share lies as close to 1/n as independent draws would: 1.3 % of them lie beyond 2.5
    standard deviations, 1 of 16,000 beyond 4."""
    counts = Counter(selected_ranks(SESSIONS[kind], list(range(workers))))
    mean, deviation = IDS / workers, sqrt(IDS / workers * (1 - 1 / workers))
    off = [abs(counts[rank] - mean) / deviation for rank in range(workers)]
    assert max(off) < 4
    assert sum(o > 2.5 for o in off) <= 2


@pytest.mark.parametrize("kind", SESSIONS)
def test_few_sessions_use_every_worker(kind: str) -> None:
    """30 sessions on 3 workers: at random, one has fewer than 3 in 1 of 1,000 cases."""
    for start in range(0, 300, 30):
        counts = Counter(selected_ranks(SESSIONS[kind][start : start + 30], [0, 1, 2]))
        assert min(counts[rank] for rank in range(3)) >= 2


@pytest.mark.parametrize("kind", SESSIONS)
def test_only_sessions_of_an_added_or_removed_worker_move(kind: str) -> None:
    every = list(range(9))
    before = selected_ranks(SESSIONS[kind], every)
    for gone in every:
        after = selected_ranks(SESSIONS[kind], [rank for rank in every if rank != gone])
        moved = [b for b, a in zip(before, after, strict=True) if a != b]
        assert set(moved) == {gone}
        fair = IDS / len(every)
        assert len(moved) < fair + 4 * sqrt(fair)


def test_session_may_be_any_text() -> None:
    """Half of a surrogate pair is valid as well, since JSON can contain it."""
    assert selected_ranks(["\ud83d", "a" * 100_000, "/", "\0"], [0, 1]) is not None


def test_random_reaches_all_workers_and_power_of_two_avoids_the_busiest() -> None:
    workers = [new_worker(rank, {"active": rank}) for rank in range(4)]
    inputs = CostInputs(0, {}, BLOCK)
    drawn = Counter(
        select_target(POLICIES[Policy.random], workers, inputs).worker.rank for _ in range(400)
    )
    assert set(drawn) == {0, 1, 2, 3}
    drawn = Counter(
        select_target(POLICIES[Policy.power_of_two], workers, inputs).worker.rank
        for _ in range(400)
    )
    assert set(drawn) == {0, 1, 2}
    assert drawn[0] > drawn[2]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.floats(0.01, 10))
def test_temperature_selects_only_usable_workers(blocks: list[int], temperature: float) -> None:
    workers = [new_worker(rank, {"blocks": n}) for rank, n in enumerate(blocks)]
    assert (
        select_target(POLICIES[Policy.kv], workers, CostInputs(0, {}, BLOCK), temperature)
        in workers
    )


def test_temperature_spreads_requests_by_cost() -> None:
    workers = [new_worker(rank, {"blocks": 10 * rank}) for rank in range(3)]
    inputs, rule = CostInputs(0, {}, BLOCK), POLICIES[Policy.kv]
    warm = Counter(select_target(rule, workers, inputs, 0.5).worker.rank for _ in range(1000))
    assert warm[0] > warm[1] > warm[2] > 0
    assert {select_target(rule, workers, inputs, 0.001).worker.rank for _ in range(100)} == {0}
