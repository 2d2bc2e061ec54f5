"""Draining a worker, setting its role, and the totals of an interval."""

import asyncio

import pytest

from hpc_dynamo.config import Role, TopologyKind
from tests.unit.router.requests import BLOCK, DEADLINE_S, new_router, routing_request, run_callbacks


async def test_draining_worker_gets_no_requests_until_its_role_is_set() -> None:
    router = new_router(TopologyKind.disaggregated)
    for rank, role in enumerate((Role.prefill, Role.decode, Role.decode)):
        await router.add_worker(rank, role, f"http://n{rank}:1")
    lease = await router.route(routing_request(8, 1, 2, split=False))
    rank = lease.decode.rank
    drain = asyncio.create_task(router.drain(rank))
    await run_callbacks()
    assert not drain.done()
    others = [await router.route(routing_request(8, 1, 2, split=False)) for _ in range(4)]
    assert {other.decode.rank for other in others} == {3 - rank}
    lease.release()
    await asyncio.wait_for(drain, DEADLINE_S)
    router.set_role(rank, Role.prefill)
    assert {m.rank for m in router.workers if m.role is Role.prefill} == {0, rank}
    assert router.kv_state.overlaps([1, 2])[rank] == 2, "its cache is forgotten"


async def test_drain_waits_for_pending_kv_pulls() -> None:
    router = new_router(TopologyKind.disaggregated)
    await router.add_worker(0, Role.prefill, "http://p:1")
    await router.add_worker(1, Role.decode, "http://d:1")
    lease = await router.route(routing_request(8, 1, 2))
    assert lease.prefill
    drain = asyncio.create_task(router.drain(0))
    lease.report_prefilled()
    await run_callbacks()
    assert not drain.done()
    lease.report_first_token()
    await asyncio.wait_for(drain, DEADLINE_S)
    lease.release()


async def test_removed_worker_ends_its_drain() -> None:
    router = new_router()
    await router.add_worker(0, Role.aggregated, "http://n:1")
    lease = await router.route(routing_request(4))
    drain = asyncio.create_task(router.drain(0))
    await run_callbacks()
    router.remove_worker(0)
    await asyncio.wait_for(drain, DEADLINE_S)
    router.set_role(0, Role.aggregated)
    assert not list(router.workers)
    lease.release()


async def test_interval_stats_count_one_interval() -> None:
    router = new_router()
    await router.add_worker(0, Role.aggregated, "http://n:1")
    for _ in range(2):
        lease = await router.route(routing_request(2 * BLOCK, 1, 2))
        lease.report_first_token()
        lease.report_progress(9)
        lease.release()
    seen = router.interval_stats.take()
    assert (seen.requests, seen.prompt_tokens.value, seen.answer_tokens.value) == (2, 8, 10)
    assert seen.hit_rate == pytest.approx(0.5)
    assert seen.ttft_s.count == seen.itl_s.count == 2
    assert router.interval_stats.take().requests == 0
