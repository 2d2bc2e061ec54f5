"""The line before the workers: its order, its limits, and who leaves it."""

import asyncio

import pytest

from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.router import (
    AdmissionLimits,
    AllWorkersTried,
    NoWorker,
    Overloaded,
    RoutingRequest,
    Target,
)
from tests.unit.router.requests import (
    ONE,
    SHORT,
    SOON_S,
    ask,
    assert_nothing_left,
    new_router,
    refused,
    settle,
    split,
    waiting,
    whole,
)

AT_ONCE = RoutingRequest(timeout_s=0.02)


async def test_the_line_is_served_in_order() -> None:
    router = await whole(1, ONE)
    lease = await router.route(RoutingRequest())
    tasks = await waiting(router, RoutingRequest(), 4)
    while tasks:
        lease.release()
        await settle()
        assert [task.done() for task in tasks] == [True] + [False] * (len(tasks) - 1)
        lease = await tasks.pop(0)
    lease.release()
    assert_nothing_left(router)


async def test_nobody_overtakes_the_line() -> None:
    router = await whole(1, ONE)
    lease = await router.route(RoutingRequest())
    (first,) = await waiting(router, RoutingRequest())
    lease.release()  # grants to the first, whose task has not run yet
    (second,) = await waiting(router, RoutingRequest())
    assert first.done()
    (await first).release()
    (await second).release()


async def test_one_with_special_needs_holds_up_nobody() -> None:
    router = await whole(2, ONE)
    leases = [await router.route(RoutingRequest()), await router.route(RoutingRequest())]
    one, other = (lease.decode.rank for lease in leases)
    (picky,) = await waiting(router, ask(exclude=(one,)))
    (plain,) = await waiting(router, RoutingRequest())
    leases[0].release()
    assert (await plain).decode.rank == one
    leases[1].release()
    assert (await picky).decode.rank == other


async def test_so_many_requests_to_a_worker_and_no_more() -> None:
    router = await whole(2, AdmissionLimits(max_requests_per_worker=3))
    for _ in range(6):
        await router.route(RoutingRequest())
    await waiting(router, RoutingRequest())
    assert [m.active for m in router.workers] == [3, 3]


@pytest.mark.parametrize("queue", [0, 2])
async def test_a_full_line_is_told_with_a_time_to_come_back(queue: int) -> None:
    router = await whole(1, AdmissionLimits(max_requests_per_worker=1, max_queued_requests=queue))
    lease = await router.route(RoutingRequest())
    tasks = await waiting(router, RoutingRequest(), queue)
    error = await refused(router, RoutingRequest(), Overloaded)
    assert (error.status, error.final) == (429, False)
    assert 1 <= error.retry_after_s <= 60
    assert f"{queue} requests are waiting" in error.message
    lease.release()
    for task in tasks:
        (await task).release()
    assert router.traffic().refused == 1
    assert_nothing_left(router)


async def test_a_long_line_is_worth_a_long_wait() -> None:
    router = await whole(1, AdmissionLimits(max_requests_per_worker=1, max_queued_requests=4))
    await router.route(RoutingRequest())
    await waiting(router, RoutingRequest(), 4)
    assert (await refused(router, RoutingRequest(), Overloaded)).retry_after_s == 40


@pytest.mark.parametrize(("limits", "asked"), [(SHORT, RoutingRequest()), (ONE, AT_ONCE)])
async def test_a_place_in_line_is_kept_for_a_time(
    limits: AdmissionLimits, asked: RoutingRequest
) -> None:
    router = await whole(1, limits)
    lease = await router.route(RoutingRequest())
    error = await refused(router, asked, Overloaded)
    assert error.status == 503
    assert error.retry_after_s >= 1
    assert "no worker had room" in error.message
    lease.release()
    assert_nothing_left(router)


async def test_the_shorter_time_counts() -> None:
    router = await whole(0, SHORT)
    await refused(router, RoutingRequest(timeout_s=SOON_S * 2), NoWorker)


@pytest.mark.parametrize(
    ("kind", "here", "missing"),
    [
        (TopologyKind.aggregated, None, "no aggregated worker"),
        (TopologyKind.disaggregated, None, "no decode and no prefill worker"),
        (TopologyKind.disaggregated, Role.prefill, "no decode worker"),
        (TopologyKind.disaggregated, Role.decode, "no prefill worker"),
    ],
)
async def test_a_role_that_nobody_has_is_named(
    kind: TopologyKind, here: Role | None, missing: str
) -> None:
    router = new_router(kind, SHORT)
    if here:
        await router.add_worker(0, here, "")
    error = await refused(router, RoutingRequest(), NoWorker)
    assert error.status == 503
    assert error.message.startswith(missing)


async def test_who_comes_serves_the_line() -> None:
    router = new_router(TopologyKind.disaggregated)
    (task,) = await waiting(router, RoutingRequest())
    await router.add_worker(0, Role.prefill, "http://p")
    await settle()
    assert not task.done()
    await router.add_worker(1, Role.decode, "http://d")
    lease = await task
    assert (lease.prefill, lease.decode) == (Target(0, "http://p"), Target(1, "http://d"))


async def test_when_all_were_tried() -> None:
    router = await whole(2)
    error = await refused(router, ask(exclude=(0, 1)), AllWorkersTried)
    assert "every aggregated worker was tried" in error.message
    assert (await router.route(ask(exclude=(0,)))).decode.rank == 1
    assert (
        "every prefill"
        in (await refused(await split(), ask(exclude=(0,)), AllWorkersTried)).message
    )


async def test_one_in_line_learns_that_all_were_tried() -> None:
    router = await whole(2, ONE)
    await router.route(ask(exclude=(0,)))
    (task,) = await waiting(router, ask(exclude=(0,)))
    router.remove_worker(1)
    with pytest.raises(AllWorkersTried):
        await task
    assert router.traffic().queued == 0


async def test_a_cancelled_one_leaves_no_trace() -> None:
    router = await whole(1, ONE)
    lease = await router.route(RoutingRequest())
    tasks = await waiting(router, ask(8, 1, 2), 2)
    tasks[0].cancel()
    await settle()
    assert router.traffic().queued == 1
    lease.release()
    (await tasks[1]).release()
    assert_nothing_left(router)


@pytest.mark.parametrize("first", ["cancel", "release"])
async def test_cancelled_and_granted_in_one_turn(first: str) -> None:
    """Two more wait behind it, and there is room for them."""
    router = await whole(1, AdmissionLimits(max_requests_per_worker=3))
    leases = [await router.route(RoutingRequest()) for _ in range(3)]
    gone, *others = await waiting(router, RoutingRequest(), 3)
    if first == "cancel":
        gone.cancel()
    for lease in leases:
        lease.release()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    for other in others:
        (await other).release()
    assert_nothing_left(router)


@pytest.mark.parametrize("first", ["cancel", "exhaust"])
async def test_cancelled_and_exhausted_in_one_turn(first: str) -> None:
    router = await whole(2, ONE)
    await router.route(ask(exclude=(0,)))
    (gone,) = await waiting(router, ask(exclude=(0,)))
    if first == "cancel":
        gone.cancel()
    router.remove_worker(1)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert router.traffic().queued == 0


async def test_one_that_lacks_a_role_holds_up_only_those_who_need_it_too() -> None:
    router = await split(AdmissionLimits(max_requests_per_worker=8))
    rank = next(m.rank for m in router.workers if m.role is Role.prefill)
    router.remove_worker(rank)
    (stuck,) = await waiting(router, RoutingRequest())
    assert (await router.route(RoutingRequest(may_disaggregate=False))).prefill is None
    await router.add_worker(rank, Role.prefill, "http://p")
    assert (await stuck).prefill is not None
