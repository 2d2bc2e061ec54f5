"""A worker is drained and gets another role; what an interval saw."""

import asyncio

import pytest

from hpc_dynamo.config import Role, TopologyKind
from tests.unit.router.requests import BLOCK, SOON_S, ask, new_router, settle


async def test_a_drained_worker_gets_nothing_until_it_turns() -> None:
    router = new_router(TopologyKind.disaggregated)
    for rank, role in enumerate((Role.prefill, Role.decode, Role.decode)):
        await router.add_worker(rank, role, f"http://n{rank}:1")
    lease = await router.route(ask(8, 1, 2, split=False))
    rank = lease.decode.rank
    drain = asyncio.create_task(router.drain(rank))
    await settle()
    assert not drain.done()
    others = [await router.route(ask(8, 1, 2, split=False)) for _ in range(4)]
    assert {other.decode.rank for other in others} == {3 - rank}
    lease.release()
    await asyncio.wait_for(drain, SOON_S)
    router.set_role(rank, Role.prefill)
    assert {m.rank for m in router.workers if m.role is Role.prefill} == {0, rank}
    assert router.kv_state.overlaps([1, 2])[rank] == 2, "its cache is forgotten"


async def test_blocks_that_are_not_pulled_yet_hold_a_drain_up() -> None:
    router = new_router(TopologyKind.disaggregated)
    await router.add_worker(0, Role.prefill, "http://p:1")
    await router.add_worker(1, Role.decode, "http://d:1")
    lease = await router.route(ask(8, 1, 2))
    assert lease.prefill
    drain = asyncio.create_task(router.drain(0))
    lease.report_prefilled()
    await settle()
    assert not drain.done()
    lease.report_first_token()
    await asyncio.wait_for(drain, SOON_S)
    lease.release()


async def test_the_death_of_a_worker_ends_its_drain() -> None:
    router = new_router()
    await router.add_worker(0, Role.aggregated, "http://n:1")
    lease = await router.route(ask(4))
    drain = asyncio.create_task(router.drain(0))
    await settle()
    router.remove_worker(0)
    await asyncio.wait_for(drain, SOON_S)
    router.set_role(0, Role.aggregated)
    assert not list(router.workers)
    lease.release()


async def test_an_interval() -> None:
    router = new_router()
    await router.add_worker(0, Role.aggregated, "http://n:1")
    for _ in range(2):
        lease = await router.route(ask(2 * BLOCK, 1, 2))
        lease.report_first_token()
        lease.report_progress(9)
        lease.release()
    seen = router.interval_stats.take()
    assert (seen.requests, seen.prompt_tokens.value, seen.answer_tokens.value) == (2, 8, 10)
    assert seen.hit_rate == pytest.approx(0.5)
    assert seen.ttft_s.count == seen.itl_s.count == 2
    assert router.interval_stats.take().requests == 0
