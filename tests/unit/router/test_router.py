"""Workers, leases and loads of a router in one process."""

import asyncio

import pytest

from hpc_dynamo.config import Policy, Role, TopologyKind
from hpc_dynamo.router import AdmissionLimits, Lease, NoWorker, RoutingRequest, StartShare
from tests.unit.router.requests import (
    BLOCK,
    DEADLINE_S,
    ONE,
    SHORT,
    aggregated_router,
    assert_nothing_left,
    disaggregated_router,
    loads,
    new_router,
    queue_requests,
    routing_request,
    run_callbacks,
)


async def test_lease_is_lost_when_its_worker_is_removed() -> None:
    router = await aggregated_router(2)
    leases = [await router.route(RoutingRequest()) for _ in range(2)]
    gone, stays = sorted(leases, key=lambda lease: lease.decode.rank)
    router.remove_worker(0)
    assert gone.worker_lost.result() == 0
    assert not stays.worker_lost.done()
    await router.add_worker(1, Role.aggregated, "")  # again, without a removal before
    assert stays.worker_lost.result() == 1
    for lease in leases:
        lease.release()
    assert_nothing_left(router)


async def test_removed_prefill_worker_after_prefill_keeps_the_lease() -> None:
    router = await disaggregated_router()
    before, after = await router.route(RoutingRequest()), await router.route(RoutingRequest())
    after.report_prefilled()
    router.remove_worker(0)
    assert before.worker_lost.result() == 0
    assert not after.worker_lost.done()
    router.remove_worker(1)
    assert after.worker_lost.result() == 1


async def test_worker_with_broken_connection_is_avoided_for_a_while() -> None:
    router = await aggregated_router(2, AdmissionLimits(avoid_s=0.05))
    first = await router.route(RoutingRequest())
    bad = first.decode.rank
    first.report_connection_lost(bad)
    first.report_connection_lost(77)
    first.release()
    assert {(await router.route(RoutingRequest())).decode.rank for _ in range(4)} == {1 - bad}
    router.remove_worker(1 - bad)
    (task,) = await queue_requests(router, RoutingRequest())
    async with asyncio.timeout(DEADLINE_S):
        assert (await task).decode.rank == bad


async def test_readded_worker_is_not_avoided() -> None:
    router = await aggregated_router(1, ONE)
    lease = await router.route(RoutingRequest())
    lease.report_connection_lost(0)
    lease.release()
    (task,) = await queue_requests(router, RoutingRequest())
    await router.add_worker(0, Role.aggregated, "")
    assert (await task).decode.rank == 0


async def test_router_is_ready_when_every_role_has_a_worker() -> None:
    router = new_router(TopologyKind.disaggregated)
    ready = asyncio.create_task(router.wait_for_roles(role for role in (Role.prefill, Role.decode)))
    for rank in range(3):
        await router.add_worker(rank, Role.prefill, "")
        await run_callbacks()
        assert not ready.done()
    assert not router.has_roles([Role.prefill, Role.decode])
    await router.add_worker(3, Role.decode, "")
    async with asyncio.timeout(DEADLINE_S):
        await ready


async def test_router_is_idle_without_leases_and_queued_requests() -> None:
    router = await aggregated_router(1, ONE)
    lease = await router.route(RoutingRequest())
    (task,) = await queue_requests(router, RoutingRequest())
    idle = asyncio.create_task(router.wait_idle())
    lease.release()
    lease = await task
    await run_callbacks()
    assert not idle.done()
    lease.release()
    async with asyncio.timeout(DEADLINE_S):
        await idle
        await router.wait_idle()


@pytest.mark.parametrize("end", ["timeout", "cancel"])
async def test_router_is_idle_when_the_last_queued_request_is_cancelled(end: str) -> None:
    router = await aggregated_router(0, SHORT if end == "timeout" else ONE)
    (task,) = await queue_requests(router, RoutingRequest())
    idle = asyncio.create_task(router.wait_idle())
    await run_callbacks()
    if end == "cancel":
        task.cancel()
    async with asyncio.timeout(DEADLINE_S):
        await idle
        await asyncio.wait([task])
    assert task.cancelled() or isinstance(task.exception(), NoWorker)


async def test_request_load_from_grant_to_release() -> None:
    router = await aggregated_router(1)
    lease = await router.route(routing_request(10, 1, 2))
    assert loads(router) == {0: (1, 10, 3, 1)}
    lease.report_first_token()
    lease.report_progress(3)
    assert loads(router) == {0: (1, 0, 3, 1)}
    lease.report_progress(2)
    assert loads(router) == {0: (1, 0, 4, 1)}
    again = await router.route(routing_request(10, 1, 2))
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


async def test_disaggregated_request_load_from_grant_to_release() -> None:
    router = await disaggregated_router()
    lease = await router.route(routing_request(10, 1, 2))
    assert loads(router) == {0: (1, 10, 0, 1), 1: (1, 0, 3, 0)}
    lease.report_prefilled()
    lease.report_prefilled()
    assert loads(router) == {0: (0, 0, 0, 0), 1: (1, 0, 3, 1)}
    lease.release()
    assert_nothing_left(router)
    assert [m.served for m in router.workers] == [1, 1]
    lease = await router.route(routing_request(10, 1, 2))
    assert loads(router)[0] == (1, 2, 0, 1)
    lease.release()  # the client went away before the prefill was done
    assert_nothing_left(router)


async def test_request_that_may_not_disaggregate_uses_the_decode_worker() -> None:
    router = await disaggregated_router()
    lease = await router.route(routing_request(10, split=False))
    assert lease.prefill is None
    assert loads(router) == {0: (0, 0, 0, 0), 1: (1, 10, 3, 1)}


async def test_prompt_goes_to_the_worker_with_its_prefix() -> None:
    router = await aggregated_router(3)
    first = await router.route(routing_request(8, 1, 2))
    first.release()
    ranks = set[int]()
    for tail in range(10, 15):
        lease = await router.route(routing_request(12, 1, 2, tail))
        ranks.add(lease.decode.rank)
        lease.release()
    assert ranks == {first.decode.rank}


BY_TURNS = [Policy.kv, Policy.least_loaded, Policy.round_robin, Policy.session]


@pytest.mark.parametrize("policy", BY_TURNS)
async def test_idle_workers_alternate_also_with_a_new_worker(policy: Policy) -> None:
    router = await aggregated_router(2, policy=policy)

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


def test_partial_hash_is_rejected() -> None:
    with pytest.raises(ValueError, match="no whole number"):
        RoutingRequest(block_hashes=b"1234567")


async def test_failed_router_rejects_queued_and_new_requests() -> None:
    router = await aggregated_router(1, ONE)
    lease = await router.route(RoutingRequest())
    (task,) = await queue_requests(router, RoutingRequest())
    router.remove_worker(0)
    router.fail("the last worker is lost")
    for refusal in (task, asyncio.ensure_future(router.route(RoutingRequest()))):
        with pytest.raises(NoWorker, match="the last worker is lost") as refused_for_good:
            await refusal
        assert refused_for_good.value.status == 503
    with pytest.raises(NoWorker, match="the last worker is lost"):
        router.explain(RoutingRequest())
    async with asyncio.timeout(DEADLINE_S):
        await router.wait_for_roles([Role.aggregated])
    lease.release()
    await router.wait_idle()


async def test_start_share_limits_workers_until_all_are_ready() -> None:
    """A batch starts with the first ready worker, but must not send it all requests."""
    limits = AdmissionLimits(
        start_shares={Role.aggregated: StartShare(ready_workers=2, requests=3)}
    )
    router = new_router(limits=limits)
    await router.add_worker(0, Role.aggregated, "http://a")
    asks = [asyncio.ensure_future(router.route(routing_request())) for _ in range(6)]
    await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
    assert [a.done() for a in asks] == [True] * 3 + [False] * 3
    await router.add_worker(1, Role.aggregated, "http://b")
    leases = await asyncio.gather(*asks)
    assert [lease.decode.rank for lease in leases] == [0, 0, 0, 1, 1, 1]
    assert router.try_route(routing_request()), "with all workers ready there is no share"


async def test_new_limits_apply_to_queued_requests() -> None:
    router = new_router(limits=ONE)
    await router.add_worker(0, Role.aggregated, "http://a")
    assert router.try_route(routing_request())
    queue_requests = router.enqueue(routing_request())
    router.set_limits(AdmissionLimits())
    assert queue_requests.lease.result().decode.rank == 0
