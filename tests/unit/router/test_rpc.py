"""The router through its unix socket, as frontend processes use it."""

import asyncio

import msgspec
import pytest

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import (
    AdmissionLimits,
    AllWorkersTried,
    ModelAvailability,
    NoWorker,
    Overloaded,
    RoutingRequest,
    RunView,
    Target,
)
from hpc_dynamo.router.scheduling.explain import RoutingExplanation
from tests.unit.router.links import Head, counts, current_view, served, wait_for, wait_idle
from tests.unit.router.requests import (
    DEADLINE_S,
    ONE,
    aggregated_router,
    assert_nothing_left,
    assert_rejected,
    disaggregated_router,
    loads,
    queue_requests,
    routing_request,
)


async def test_lease_events_reach_the_router() -> None:
    async with served(await disaggregated_router()) as head:
        remote = await head.frontend()
        lease = await remote.route(routing_request(10, 1, 2))
        assert (lease.prefill, lease.decode) == (Target(0, "http://p:1"), Target(1, "http://d:1"))
        assert loads(head.router) == {0: (1, 10, 0, 1), 1: (1, 0, 3, 0)}
        lease.report_prefilled()
        lease.report_first_token()
        lease.report_progress(4)
        again = await remote.route(routing_request(split=False))  # after all earlier messages
        assert loads(head.router) == {0: (0, 0, 0, 0), 1: (2, 0, 4, 2)}
        for one in (lease, lease, again):
            one.release()
        await wait_idle(head.router)
        assert_nothing_left(head.router)


async def test_queue_is_served_in_order_over_all_frontends(head: Head) -> None:
    one, other = await head.frontend(), await head.frontend()
    leases = [await one.route(RoutingRequest()), await other.route(RoutingRequest())]
    (first,) = await queue_requests(one, RoutingRequest())
    assert await counts(head, one) == (2, 1)
    (second,) = await queue_requests(other, RoutingRequest())
    assert await counts(head, other) == (2, 2)
    leases[1].release()
    leases.append(await first)
    assert not second.done()
    leases[0].release()
    leases.append(await second)
    for lease in leases:
        lease.release()
    await wait_idle(head.router)


async def test_request_goes_to_the_router_of_its_model() -> None:
    small, large = await aggregated_router(1, ONE), await aggregated_router(1, ONE)
    async with served(small, large=large) as head:
        remote = await head.frontend()
        lease = await remote.route(RoutingRequest(model="large"))
        (task,) = await queue_requests(remote, RoutingRequest(model="large"))
        assert await counts(head, remote) == (0, 0)
        assert (large.traffic().active, large.traffic().queued) == (1, 1)
        (await remote.route(RoutingRequest())).release()
        task.cancel()
        await asyncio.wait([task])
        lease.release()
        await wait_idle(large)
        why = msgspec.json.decode(
            await remote.explain(RoutingRequest(model="large")), type=RoutingExplanation
        )
        assert why.model == "large"
        unknown = await assert_rejected(remote, RoutingRequest(model="medium"), RequestFailed)
        assert unknown.status == 404
    assert_nothing_left(small)
    assert_nothing_left(large)


async def test_routing_errors_reach_the_frontend() -> None:
    limits = AdmissionLimits(max_requests_per_worker=1, max_queued_requests=1, queue_timeout_s=0.2)
    async with served(await aggregated_router(1, limits)) as head:
        remote = await head.frontend()
        lease = await remote.route(RoutingRequest())
        error = await assert_rejected(remote, routing_request(exclude=(0,)), AllWorkersTried)
        assert "every aggregated worker was tried" in error.message
        (task,) = await queue_requests(remote, RoutingRequest())
        full = await assert_rejected(remote, RoutingRequest(), Overloaded)
        assert (full.status, full.retry_after_s) == (429, 10)
        with pytest.raises(Overloaded, match="no worker had room") as late:
            await task
        assert (late.value.status, late.value.retry_after_s) == (503, 1)
        lease.release()
        head.router.remove_worker(0)
        missing = await assert_rejected(remote, RoutingRequest(timeout_s=0.01), NoWorker)
        assert (missing.status, "no aggregated worker" in missing.message) == (503, True)


async def test_burst_of_requests_respects_limit_and_order() -> None:
    """All requests of one read of the socket are queued before the next read."""
    async with served(
        await aggregated_router(
            1, AdmissionLimits(max_requests_per_worker=1, max_queued_requests=2)
        )
    ) as head:
        remote = await head.frontend()
        lease = await remote.route(RoutingRequest())
        tasks = [asyncio.create_task(remote.route(RoutingRequest())) for _ in range(5)]
        await asyncio.sleep(0)
        lease.release()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait(tasks[2:])
        assert [isinstance(task.exception(), Overloaded) for task in tasks[2:]] == [True] * 3
        (await tasks[0]).release()
        (await tasks[1]).release()
        await wait_idle(head.router)


async def test_request_cancelled_while_queued_or_granted_is_released(head: Head) -> None:
    remote = await head.frontend()
    leases = [await remote.route(RoutingRequest()) for _ in range(2)]
    gone, stays = await queue_requests(remote, RoutingRequest(), 2)
    assert await counts(head, remote) == (2, 2)
    gone.cancel()
    assert await counts(head, remote) == (2, 1)
    leases[0].release()
    await stays
    for lease in (leases[1], await stays):
        lease.release()
    await wait_idle(head.router)


@pytest.mark.parametrize("turns", range(5))
async def test_request_cancelled_before_its_grant_arrives_is_released(
    head: Head, turns: int
) -> None:
    remote = await head.frontend()
    leases = [await remote.route(RoutingRequest()) for _ in range(2)]
    (task,) = await queue_requests(remote, RoutingRequest())
    assert await counts(head, remote) == (2, 1)
    for lease in leases:
        lease.release()
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.cancel():
        await asyncio.wait([task])
    else:
        task.result().release()
    assert await counts(head, remote) == (0, 0)


async def test_request_cancelled_at_once_is_released(head: Head) -> None:
    remote = await head.frontend()
    leases = [await remote.route(RoutingRequest()) for _ in range(2)]
    for _ in range(2):  # queued the first time, granted the second time
        task = asyncio.create_task(remote.route(RoutingRequest()))
        await asyncio.sleep(0)
        task.cancel()
        await assert_rejected(
            remote, routing_request(exclude=(0, 1)), AllWorkersTried
        )  # after all earlier messages
        assert (task.cancelled(), head.router.traffic().queued) == (True, 0)
        for lease in leases:
            lease.release()
        await wait_idle(head.router)


async def test_lost_workers_are_reported(head: Head) -> None:
    remote = await head.frontend()
    leases = {
        lease.decode.rank: lease
        for lease in [await remote.route(RoutingRequest()) for _ in range(2)]
    }
    head.router.remove_worker(1)
    assert await wait_for(leases[1].worker_lost) == 1
    assert not leases[0].worker_lost.done()
    for lease in leases.values():
        lease.release()
    await wait_idle(head.router)


async def test_worker_with_broken_connection_is_avoided(head: Head) -> None:
    remote = await head.frontend()
    lease = await remote.route(RoutingRequest())
    lease.report_connection_lost(lease.decode.rank)
    lease.release()
    other = await remote.route(RoutingRequest())
    assert other.decode.rank != lease.decode.rank
    other.release()
    await wait_idle(head.router)


async def test_view_is_pushed_on_changes(head: Head) -> None:
    remotes = [await head.frontend(), await head.frontend()]
    assert await current_view(remotes[1]) == head.view
    head.view = RunView(models={"": ModelAvailability(ready=True, names=("a", "b"))}, draining=True)
    head.server.push_view()
    for remote in remotes:
        assert await current_view(remote) == head.view


async def test_reports_reach_the_head(head: Head) -> None:
    one, other = await head.frontend(), await head.frontend()
    one.report_to_head(RunView(metrics="x"))
    number, content = await asyncio.wait_for(head.reports.get(), DEADLINE_S)
    assert msgspec.msgpack.decode(content, type=RunView).metrics == "x"
    other.report_to_head(RunView())
    assert (await asyncio.wait_for(head.reports.get(), DEADLINE_S))[0] != number
    one.close()
    assert await asyncio.wait_for(head.disconnected.get(), DEADLINE_S) == number
