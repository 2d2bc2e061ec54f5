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
from tests.unit.router.links import Head, heard, quiet, served, shown, soon
from tests.unit.router.requests import (
    ONE,
    SOON_S,
    ask,
    assert_nothing_left,
    loads,
    refused,
    split,
    waiting,
    whole,
)


async def test_a_lease_and_its_notes() -> None:
    async with served(await split()) as head:
        remote = await head.frontend()
        lease = await remote.route(ask(10, 1, 2))
        assert (lease.prefill, lease.decode) == (Target(0, "http://p:1"), Target(1, "http://d:1"))
        assert loads(head.router) == {0: (1, 10, 0, 1), 1: (1, 0, 3, 0)}
        lease.report_prefilled()
        lease.report_first_token()
        lease.report_progress(4)
        again = await remote.route(ask(split=False))  # what was said before has been heard
        assert loads(head.router) == {0: (0, 0, 0, 0), 1: (2, 0, 4, 2)}
        for one in (lease, lease, again):
            one.release()
        await quiet(head.router)
        assert_nothing_left(head.router)


async def test_those_in_line_are_served_over_all_frontends(head: Head) -> None:
    one, other = await head.frontend(), await head.frontend()
    leases = [await one.route(RoutingRequest()), await other.route(RoutingRequest())]
    (first,) = await waiting(one, RoutingRequest())
    assert await heard(head, one) == (2, 1)
    (second,) = await waiting(other, RoutingRequest())
    assert await heard(head, other) == (2, 2)
    leases[1].release()
    leases.append(await first)
    assert not second.done()
    leases[0].release()
    leases.append(await second)
    for lease in leases:
        lease.release()
    await quiet(head.router)


async def test_an_ask_is_its_own_models_routers() -> None:
    small, large = await whole(1, ONE), await whole(1, ONE)
    async with served(small, large=large) as head:
        remote = await head.frontend()
        lease = await remote.route(RoutingRequest(model="large"))
        (task,) = await waiting(remote, RoutingRequest(model="large"))
        assert await heard(head, remote) == (0, 0)
        assert (large.traffic().active, large.traffic().queued) == (1, 1)
        (await remote.route(RoutingRequest())).release()
        task.cancel()
        await asyncio.wait([task])
        lease.release()
        await quiet(large)
        why = msgspec.json.decode(
            await remote.explain(RoutingRequest(model="large")), type=RoutingExplanation
        )
        assert why.model == "large"
        unknown = await refused(remote, RoutingRequest(model="medium"), RequestFailed)
        assert unknown.status == 404
    assert_nothing_left(small)
    assert_nothing_left(large)


async def test_denials_come_through() -> None:
    limits = AdmissionLimits(max_requests_per_worker=1, max_queued_requests=1, queue_timeout_s=0.2)
    async with served(await whole(1, limits)) as head:
        remote = await head.frontend()
        lease = await remote.route(RoutingRequest())
        error = await refused(remote, ask(exclude=(0,)), AllWorkersTried)
        assert "every aggregated worker was tried" in error.message
        (task,) = await waiting(remote, RoutingRequest())
        full = await refused(remote, RoutingRequest(), Overloaded)
        assert (full.status, full.retry_after_s) == (429, 10)
        with pytest.raises(Overloaded, match="no worker had room") as late:
            await task
        assert (late.value.status, late.value.retry_after_s) == (503, 1)
        lease.release()
        head.router.remove_worker(0)
        missing = await refused(remote, RoutingRequest(timeout_s=0.01), NoWorker)
        assert (missing.status, "no aggregated worker" in missing.message) == (503, True)


async def test_a_burst_is_held_to_the_limit_and_to_the_order() -> None:
    """All that one read of the socket brings is in line before the next is looked at."""
    async with served(
        await whole(1, AdmissionLimits(max_requests_per_worker=1, max_queued_requests=2))
    ) as head:
        remote = await head.frontend()
        lease = await remote.route(RoutingRequest())
        tasks = [asyncio.create_task(remote.route(RoutingRequest())) for _ in range(5)]
        await asyncio.sleep(0)
        lease.release()
        async with asyncio.timeout(SOON_S):
            await asyncio.wait(tasks[2:])
        assert [isinstance(task.exception(), Overloaded) for task in tasks[2:]] == [True] * 3
        (await tasks[0]).release()
        (await tasks[1]).release()
        await quiet(head.router)


async def test_cancelled_while_waiting_and_while_granted(head: Head) -> None:
    remote = await head.frontend()
    leases = [await remote.route(RoutingRequest()) for _ in range(2)]
    gone, stays = await waiting(remote, RoutingRequest(), 2)
    assert await heard(head, remote) == (2, 2)
    gone.cancel()
    assert await heard(head, remote) == (2, 1)
    leases[0].release()
    await stays
    for lease in (leases[1], await stays):
        lease.release()
    await quiet(head.router)


@pytest.mark.parametrize("turns", range(5))
async def test_cancelled_while_the_grant_is_under_way(head: Head, turns: int) -> None:
    remote = await head.frontend()
    leases = [await remote.route(RoutingRequest()) for _ in range(2)]
    (task,) = await waiting(remote, RoutingRequest())
    assert await heard(head, remote) == (2, 1)
    for lease in leases:
        lease.release()
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.cancel():
        await asyncio.wait([task])
    else:
        task.result().release()
    assert await heard(head, remote) == (0, 0)


async def test_asked_and_cancelled_in_one_turn(head: Head) -> None:
    remote = await head.frontend()
    leases = [await remote.route(RoutingRequest()) for _ in range(2)]
    for _ in range(2):  # it would be in line, then it would be granted
        task = asyncio.create_task(remote.route(RoutingRequest()))
        await asyncio.sleep(0)
        task.cancel()
        await refused(remote, ask(exclude=(0, 1)), AllWorkersTried)  # all before has been heard
        assert (task.cancelled(), head.router.traffic().queued) == (True, 0)
        for lease in leases:
            lease.release()
        await quiet(head.router)


async def test_losses_are_told(head: Head) -> None:
    remote = await head.frontend()
    leases = {
        lease.decode.rank: lease
        for lease in [await remote.route(RoutingRequest()) for _ in range(2)]
    }
    head.router.remove_worker(1)
    assert await soon(leases[1].worker_lost) == 1
    assert not leases[0].worker_lost.done()
    for lease in leases.values():
        lease.release()
    await quiet(head.router)


async def test_a_broken_worker_is_avoided(head: Head) -> None:
    remote = await head.frontend()
    lease = await remote.route(RoutingRequest())
    lease.report_connection_lost(lease.decode.rank)
    lease.release()
    other = await remote.route(RoutingRequest())
    assert other.decode.rank != lease.decode.rank
    other.release()
    await quiet(head.router)


async def test_the_view_is_pushed(head: Head) -> None:
    remotes = [await head.frontend(), await head.frontend()]
    assert await shown(remotes[1]) == head.view
    head.view = RunView(models={"": ModelAvailability(ready=True, names=("a", "b"))}, draining=True)
    head.server.push_view()
    for remote in remotes:
        assert await shown(remote) == head.view


async def test_telling(head: Head) -> None:
    one, other = await head.frontend(), await head.frontend()
    one.report_to_head(RunView(metrics="x"))
    number, content = await asyncio.wait_for(head.told.get(), SOON_S)
    assert msgspec.msgpack.decode(content, type=RunView).metrics == "x"
    other.report_to_head(RunView())
    assert (await asyncio.wait_for(head.told.get(), SOON_S))[0] != number
    one.close()
    assert await asyncio.wait_for(head.left.get(), SOON_S) == number
