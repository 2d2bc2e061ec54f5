"""Who comes and goes, and what a request weighs, in one process."""

import asyncio

import pytest

from hpc_dynamo.config import Policy, Role, TopologyKind
from hpc_dynamo.router import AdmissionLimits, Lease, NoWorker, RoutingRequest, StartShare
from tests.unit.router.requests import (
    BLOCK,
    ONE,
    SHORT,
    SOON_S,
    ask,
    assert_nothing_left,
    loads,
    new_router,
    settle,
    split,
    waiting,
    whole,
)


async def test_a_lease_is_lost_with_its_worker() -> None:
    router = await whole(2)
    leases = [await router.route(RoutingRequest()) for _ in range(2)]
    gone, stays = sorted(leases, key=lambda lease: lease.decode.rank)
    router.remove_worker(0)
    assert gone.worker_lost.result() == 0
    assert not stays.worker_lost.done()
    await router.add_worker(1, Role.aggregated, "")  # anew, not seen to leave
    assert stays.worker_lost.result() == 1
    for lease in leases:
        lease.release()
    assert_nothing_left(router)


async def test_the_prefill_worker_may_leave_when_its_part_is_done() -> None:
    router = await split()
    before, after = await router.route(RoutingRequest()), await router.route(RoutingRequest())
    after.report_prefilled()
    router.remove_worker(0)
    assert before.worker_lost.result() == 0
    assert not after.worker_lost.done()
    router.remove_worker(1)
    assert after.worker_lost.result() == 1


async def test_a_broken_worker_is_left_alone_for_a_while() -> None:
    router = await whole(2, AdmissionLimits(avoid_s=0.05))
    first = await router.route(RoutingRequest())
    bad = first.decode.rank
    first.report_connection_lost(bad)
    first.report_connection_lost(77)
    first.release()
    assert {(await router.route(RoutingRequest())).decode.rank for _ in range(4)} == {1 - bad}
    router.remove_worker(1 - bad)
    (task,) = await waiting(router, RoutingRequest())
    async with asyncio.timeout(SOON_S):
        assert (await task).decode.rank == bad


async def test_a_new_life_is_not_avoided() -> None:
    router = await whole(1, ONE)
    lease = await router.route(RoutingRequest())
    lease.report_connection_lost(0)
    lease.release()
    (task,) = await waiting(router, RoutingRequest())
    await router.add_worker(0, Role.aggregated, "")
    assert (await task).decode.rank == 0


async def test_ready_when_every_role_is_there() -> None:
    router = new_router(TopologyKind.disaggregated)
    ready = asyncio.create_task(router.wait_for_roles(role for role in (Role.prefill, Role.decode)))
    for rank in range(3):
        await router.add_worker(rank, Role.prefill, "")
        await settle()
        assert not ready.done()
    assert not router.has_roles([Role.prefill, Role.decode])
    await router.add_worker(3, Role.decode, "")
    async with asyncio.timeout(SOON_S):
        await ready


async def test_idle_when_nothing_is_out_and_nobody_waits() -> None:
    router = await whole(1, ONE)
    lease = await router.route(RoutingRequest())
    (task,) = await waiting(router, RoutingRequest())
    idle = asyncio.create_task(router.wait_idle())
    lease.release()
    lease = await task
    await settle()
    assert not idle.done()
    lease.release()
    async with asyncio.timeout(SOON_S):
        await idle
        await router.wait_idle()


@pytest.mark.parametrize("end", ["timeout", "cancel"])
async def test_idle_when_the_last_in_line_gives_up(end: str) -> None:
    router = await whole(0, SHORT if end == "timeout" else ONE)
    (task,) = await waiting(router, RoutingRequest())
    idle = asyncio.create_task(router.wait_idle())
    await settle()
    if end == "cancel":
        task.cancel()
    async with asyncio.timeout(SOON_S):
        await idle
        await asyncio.wait([task])
    assert task.cancelled() or isinstance(task.exception(), NoWorker)


async def test_what_a_request_weighs() -> None:
    router = await whole(1)
    lease = await router.route(ask(10, 1, 2))
    assert loads(router) == {0: (1, 10, 3, 1)}
    lease.report_first_token()
    lease.report_progress(3)
    assert loads(router) == {0: (1, 0, 3, 1)}
    lease.report_progress(2)
    assert loads(router) == {0: (1, 0, 4, 1)}
    again = await router.route(ask(10, 1, 2))
    assert loads(router) == {0: (2, 10 - 2 * BLOCK, 7, 2)}
    again.release()
    again.release()
    assert loads(router) == {0: (1, 0, 4, 1)}
    lease.release()
    for late in (
        lease.report_prefilled,
        lease.report_first_token,
        lambda: lease.report_progress(9),
    ):
        late()
    assert_nothing_left(router)
    (member,) = router.workers
    assert (member.served, member.busy_s > 0) == (2, True)


async def test_what_a_request_weighs_on_two_workers() -> None:
    router = await split()
    lease = await router.route(ask(10, 1, 2))
    assert loads(router) == {0: (1, 10, 0, 1), 1: (1, 0, 3, 0)}
    lease.report_prefilled()
    lease.report_prefilled()
    assert loads(router) == {0: (0, 0, 0, 0), 1: (1, 0, 3, 1)}
    lease.release()
    assert_nothing_left(router)
    assert [m.served for m in router.workers] == [1, 1]
    lease = await router.route(ask(10, 1, 2))
    assert loads(router)[0] == (1, 2, 0, 1)
    lease.release()  # the client went away before the prefill was done
    assert_nothing_left(router)


async def test_a_request_that_cannot_be_split_is_decoded_alone() -> None:
    router = await split()
    lease = await router.route(ask(10, split=False))
    assert lease.prefill is None
    assert loads(router) == {0: (0, 0, 0, 0), 1: (1, 10, 3, 1)}


async def test_a_prompt_goes_where_its_start_is() -> None:
    router = await whole(3)
    first = await router.route(ask(8, 1, 2))
    first.release()
    ranks = set[int]()
    for tail in range(10, 15):
        lease = await router.route(ask(12, 1, 2, tail))
        ranks.add(lease.decode.rank)
        lease.release()
    assert ranks == {first.decode.rank}


BY_TURNS = [Policy.kv, Policy.least_loaded, Policy.round_robin, Policy.session]


@pytest.mark.parametrize("policy", BY_TURNS)
async def test_idle_workers_take_turns_also_with_a_late_comer(policy: Policy) -> None:
    router = await whole(2, policy=policy)

    async def ranks(count: int) -> list[int]:
        leases = list[Lease]()
        for _ in range(count):
            leases.append(await router.route(RoutingRequest()))
            leases[-1].release()
        return [lease.decode.rank for lease in leases]

    assert await ranks(6) == [0, 1, 0, 1, 0, 1]
    await router.add_worker(2, Role.aggregated, "")
    assert sorted(await ranks(3)) == [0, 1, 2]
    assert sorted(await ranks(3)) == [0, 1, 2]


def test_half_a_hash_is_none() -> None:
    with pytest.raises(ValueError, match="no whole number"):
        RoutingRequest(block_hashes=b"1234567")


async def test_given_up_it_refuses_who_waits_and_who_comes() -> None:
    router = await whole(1, ONE)
    lease = await router.route(RoutingRequest())
    (task,) = await waiting(router, RoutingRequest())
    router.remove_worker(0)
    router.fail("the last worker is lost")
    for refusal in (task, asyncio.ensure_future(router.route(RoutingRequest()))):
        with pytest.raises(NoWorker, match="the last worker is lost") as refused_for_good:
            await refusal
        assert refused_for_good.value.status == 503
    with pytest.raises(NoWorker, match="the last worker is lost"):
        router.explain(RoutingRequest())
    async with asyncio.timeout(SOON_S):
        await router.wait_for_roles([Role.aggregated])
    lease.release()
    await router.wait_idle()


async def test_until_all_workers_are_ready_each_takes_only_its_share() -> None:
    """A batch starts with the worker that is ready first, but must not give it everything."""
    limits = AdmissionLimits(
        start_shares={Role.aggregated: StartShare(ready_workers=2, requests=3)}
    )
    router = new_router(limits=limits)
    await router.add_worker(0, Role.aggregated, "http://a")
    asks = [asyncio.ensure_future(router.route(ask())) for _ in range(6)]
    await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
    assert [a.done() for a in asks] == [True] * 3 + [False] * 3
    await router.add_worker(1, Role.aggregated, "http://b")
    leases = await asyncio.gather(*asks)
    assert [lease.decode.rank for lease in leases] == [0, 0, 0, 1, 1, 1]
    assert router.try_route(ask()), "with all workers ready there is no share"


async def test_new_limits_apply_to_requests_in_the_queue() -> None:
    router = new_router(limits=ONE)
    await router.add_worker(0, Role.aggregated, "http://a")
    assert router.try_route(ask())
    waiting = router.enqueue(ask())
    router.set_limits(AdmissionLimits())
    assert waiting.lease.result().decode.rank == 0
