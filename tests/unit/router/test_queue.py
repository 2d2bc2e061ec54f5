"""The request queue: order, limits, timeouts and cancellation."""

import asyncio

import pytest

from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.router import (
    AdmissionLimits,
    AllWorkersTried,
    NoWorker,
    Overloaded,
    RoutingHints,
    RoutingRequest,
    Target,
)
from hpc_dynamo.router.scheduling.queue import MAX_WORKER_SETS
from hpc_dynamo.router.scheduling.worker import RoutingTarget
from tests.unit.router.requests import (
    DEADLINE_S,
    ONE,
    SHORT,
    aggregated_router,
    assert_nothing_left,
    assert_rejected,
    disaggregated_router,
    new_router,
    queue_requests,
    routing_request,
    run_callbacks,
)

AT_ONCE = RoutingRequest(timeout_s=0.02)


async def test_queue_is_served_in_order() -> None:
    router = await aggregated_router(1, ONE)
    lease = await router.route(RoutingRequest())
    tasks = await queue_requests(router, RoutingRequest(), 4)
    while tasks:
        lease.release()
        await run_callbacks()
        assert [task.done() for task in tasks] == [True] + [False] * (len(tasks) - 1)
        lease = await tasks.pop(0)
    lease.release()
    assert_nothing_left(router)


async def test_new_request_does_not_overtake_the_queue() -> None:
    router = await aggregated_router(1, ONE)
    lease = await router.route(RoutingRequest())
    (first,) = await queue_requests(router, RoutingRequest())
    lease.release()  # grants to the first, whose task has not run yet
    (second,) = await queue_requests(router, RoutingRequest())
    assert first.done()
    (await first).release()
    (await second).release()


async def test_request_for_one_worker_does_not_block_the_queue() -> None:
    router = await aggregated_router(2, ONE)
    leases = [await router.route(RoutingRequest()), await router.route(RoutingRequest())]
    one, other = (lease.decode.rank for lease in leases)
    (picky,) = await queue_requests(router, routing_request(exclude=(one,)))
    (plain,) = await queue_requests(router, RoutingRequest())
    leases[0].release()
    assert (await plain).decode.rank == one
    leases[1].release()
    assert (await picky).decode.rank == other


async def test_worker_gets_at_most_its_request_limit() -> None:
    router = await aggregated_router(2, AdmissionLimits(max_requests_per_worker=3))
    for _ in range(6):
        await router.route(RoutingRequest())
    await queue_requests(router, RoutingRequest())
    assert [m.active for m in router.workers] == [3, 3]


@pytest.mark.parametrize("queue", [0, 2])
async def test_router_with_full_queue_rejects_request_with_retry_time(queue: int) -> None:
    router = await aggregated_router(
        1, AdmissionLimits(max_requests_per_worker=1, max_queued_requests=queue)
    )
    lease = await router.route(RoutingRequest())
    tasks = await queue_requests(router, RoutingRequest(), queue)
    error = await assert_rejected(router, RoutingRequest(), Overloaded)
    assert (error.status, error.final) == (429, False)
    assert 1 <= error.retry_after_s <= 60
    assert f"{queue} requests are waiting" in error.message
    lease.release()
    for task in tasks:
        (await task).release()
    assert router.traffic().refused == 1
    assert_nothing_left(router)


async def test_retry_time_grows_with_the_queue() -> None:
    router = await aggregated_router(
        1, AdmissionLimits(max_requests_per_worker=1, max_queued_requests=4)
    )
    await router.route(RoutingRequest())
    await queue_requests(router, RoutingRequest(), 4)
    assert (await assert_rejected(router, RoutingRequest(), Overloaded)).retry_after_s == 40


@pytest.mark.parametrize(("limits", "late_request"), [(SHORT, RoutingRequest()), (ONE, AT_ONCE)])
async def test_queued_request_times_out(
    limits: AdmissionLimits, late_request: RoutingRequest
) -> None:
    router = await aggregated_router(1, limits)
    lease = await router.route(RoutingRequest())
    error = await assert_rejected(router, late_request, Overloaded)
    assert error.status == 503
    assert error.retry_after_s >= 1
    assert "no worker had room" in error.message
    lease.release()
    assert_nothing_left(router)


async def test_shorter_of_two_timeouts_applies() -> None:
    router = await aggregated_router(0, SHORT)
    await assert_rejected(router, RoutingRequest(timeout_s=DEADLINE_S * 2), NoWorker)


@pytest.mark.parametrize(
    ("kind", "here", "missing"),
    [
        (TopologyKind.aggregated, None, "no aggregated worker"),
        (TopologyKind.disaggregated, None, "no decode and no prefill worker"),
        (TopologyKind.disaggregated, Role.prefill, "no decode worker"),
        (TopologyKind.disaggregated, Role.decode, "no prefill worker"),
    ],
)
async def test_timeout_error_names_missing_roles(
    kind: TopologyKind, here: Role | None, missing: str
) -> None:
    router = new_router(kind, SHORT)
    if here:
        await router.add_worker(0, here, "")
    error = await assert_rejected(router, RoutingRequest(), NoWorker)
    assert error.status == 503
    assert error.message.startswith(missing)


async def test_added_worker_serves_queued_requests() -> None:
    router = new_router(TopologyKind.disaggregated)
    (task,) = await queue_requests(router, RoutingRequest())
    await router.add_worker(0, Role.prefill, "http://p")
    await run_callbacks()
    assert not task.done()
    await router.add_worker(1, Role.decode, "http://d")
    lease = await task
    assert (lease.prefill, lease.decode) == (Target(0, "http://p"), Target(1, "http://d"))


async def test_request_that_tried_all_workers_is_rejected() -> None:
    router = await aggregated_router(2)
    error = await assert_rejected(router, routing_request(exclude=(0, 1)), AllWorkersTried)
    assert "every aggregated worker was tried" in error.message
    assert (await router.route(routing_request(exclude=(0,)))).decode.rank == 1
    assert (
        "every prefill"
        in (
            await assert_rejected(
                await disaggregated_router(), routing_request(exclude=(0,)), AllWorkersTried
            )
        ).message
    )


async def test_queued_request_is_rejected_when_all_workers_were_tried() -> None:
    router = await aggregated_router(2, ONE)
    await router.route(routing_request(exclude=(0,)))
    (task,) = await queue_requests(router, routing_request(exclude=(0,)))
    router.remove_worker(1)
    with pytest.raises(AllWorkersTried):
        await task
    assert router.traffic().queued == 0


async def test_cancelled_request_leaves_the_queue() -> None:
    router = await aggregated_router(1, ONE)
    lease = await router.route(RoutingRequest())
    tasks = await queue_requests(router, routing_request(8, 1, 2), 2)
    tasks[0].cancel()
    await run_callbacks()
    assert router.traffic().queued == 1
    lease.release()
    (await tasks[1]).release()
    assert_nothing_left(router)


@pytest.mark.parametrize("first", ["cancel", "release"])
async def test_request_cancelled_when_granted_releases_its_lease(first: str) -> None:
    """Two more requests are queued behind it, and there is room for them."""
    router = await aggregated_router(1, AdmissionLimits(max_requests_per_worker=3))
    leases = [await router.route(RoutingRequest()) for _ in range(3)]
    gone, *others = await queue_requests(router, RoutingRequest(), 3)
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
async def test_request_cancelled_when_rejected_is_dropped(first: str) -> None:
    router = await aggregated_router(2, ONE)
    await router.route(routing_request(exclude=(0,)))
    (gone,) = await queue_requests(router, routing_request(exclude=(0,)))
    if first == "cancel":
        gone.cancel()
    router.remove_worker(1)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert router.traffic().queued == 0


async def test_request_with_missing_role_blocks_only_requests_of_that_role() -> None:
    router = await disaggregated_router(AdmissionLimits(max_requests_per_worker=8))
    rank = next(m.rank for m in router.workers if m.role is Role.prefill)
    router.remove_worker(rank)
    (stuck,) = await queue_requests(router, RoutingRequest())
    assert (await router.route(RoutingRequest(may_disaggregate=False))).prefill is None
    await router.add_worker(rank, Role.prefill, "http://p")
    assert (await stuck).prefill is not None


class CountingLimits(AdmissionLimits):
    """Counts how often it is asked if a worker has room."""

    asked = 0

    def has_room(self, target: RoutingTarget, max_requests: float) -> bool:
        type(self).asked += 1
        return super().has_room(target, max_requests)


def for_worker(*ranks: int) -> RoutingRequest:
    return RoutingRequest(hints=RoutingHints(workers=ranks))


async def test_requests_for_a_busy_worker_cost_one_attempt_per_event() -> None:
    router = await aggregated_router(2, CountingLimits(max_requests_per_worker=1))
    first = await router.route(for_worker(0))
    CountingLimits.asked = 0
    queued = [router.enqueue(for_worker(0, 0)) for _ in range(200)]
    (await router.route(RoutingRequest())).release()
    for gone in queued[100:]:
        router.cancel(gone)
    assert CountingLimits.asked <= 2 * 310
    first.release()
    for waiting in queued[:100]:
        assert waiting.lease.result().decode.rank == 0
        waiting.lease.result().release()
    assert_nothing_left(router)


async def test_queue_full_of_requests_for_a_busy_worker_does_not_close_the_others() -> None:
    router = await aggregated_router(
        2, AdmissionLimits(max_requests_per_worker=1, max_queued_requests=3)
    )
    await router.route(for_worker(0))
    await queue_requests(router, for_worker(0), 3)
    await assert_rejected(router, for_worker(0), Overloaded)
    assert (await router.route(RoutingRequest())).decode.rank == 1
    await assert_rejected(router, RoutingRequest(), Overloaded)


async def test_priority_counts_among_requests_for_different_workers() -> None:
    router = await aggregated_router(2, ONE)
    leases = [await router.route(for_worker(rank)) for rank in (0, 1)]
    (low,) = await queue_requests(router, for_worker(0))
    hints = RoutingHints(workers=(0, 1), priority=1)
    (high,) = await queue_requests(router, RoutingRequest(hints=hints))
    leases[0].release()
    assert (await high).decode.rank == 0
    assert not low.done()


async def test_requests_for_many_sets_of_workers_do_not_fill_the_queue() -> None:
    """Each of 1,000 sets of ten busy workers was tried again after each event of any request."""
    router = await aggregated_router(10, ONE)
    leases = [await router.route(for_worker(rank)) for rank in range(10)]
    pairs = [for_worker(first, second) for first in range(10) for second in range(first)]
    queued = [(await queue_requests(router, pair))[0] for pair in pairs[:MAX_WORKER_SETS]]
    for pair in pairs[MAX_WORKER_SETS:]:
        await assert_rejected(router, pair, Overloaded)
    queued += await queue_requests(router, pairs[0])
    queued += await queue_requests(router, RoutingRequest())
    for lease in leases:
        lease.release()
    for waiting in queued:
        (await waiting).release()
    assert_nothing_left(router)


async def test_many_sets_of_workers_in_the_queue_do_not_close_other_workers() -> None:
    router = await aggregated_router(11, ONE)
    for rank in range(10):
        await router.route(for_worker(rank))
    pairs = [for_worker(first, second) for first in range(10) for second in range(first)]
    queued = [router.enqueue(pair) for pair in pairs[:MAX_WORKER_SETS]]
    assert (await router.route(for_worker(0, 10))).decode.rank == 10
    for waiting in queued:
        router.cancel(waiting)
