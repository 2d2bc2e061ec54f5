"""Data-parallel ranks of a worker: each is a target with its own blocks, load and limits."""

import pytest

from hpc_dynamo.config import Policy, Role, TopologyKind
from hpc_dynamo.messages import PrefixCaches
from hpc_dynamo.router import AdmissionLimits, Lease, RequestRouter, WorkerDemand
from hpc_dynamo.router.scheduling.peer_loads import encode_loads
from tests.unit.router.requests import (
    BLOCK,
    assert_nothing_left,
    loads,
    new_router,
    routing_request,
)

URL = "http://n0:1"
FOUR = PrefixCaches(4)


async def ranked_router(
    caches: PrefixCaches = FOUR,
    policy: Policy = Policy.kv,
    limits: AdmissionLimits | None = None,
) -> RequestRouter:
    router = new_router(policy=policy, limits=limits)
    await router.add_worker(0, Role.aggregated, URL, caches=caches)
    return router


def rank(lease: Lease) -> int | None:
    return lease.decode.dp_rank


async def test_prompts_return_to_the_rank_with_their_blocks() -> None:
    router = await ranked_router()
    groups = {start: (start, start + 1, start + 2) for start in (10, 20, 30, 40)}
    first = {}
    for start, blocks in groups.items():
        lease = await router.route(routing_request(3 * BLOCK, *blocks))
        first[start] = rank(lease)
        assert (lease.decode.rank, lease.decode.url, lease.decode.dp_size) == (0, URL, 4)
        lease.release()
    assert set(first.values()) == {0, 1, 2, 3}
    for start, blocks in reversed(groups.items()):
        request = routing_request(4 * BLOCK, *blocks, 99)
        explained = router.explain(request)
        assert [c.overlap_blocks for c in explained.workers if c.chosen] == [3]
        assert [c.dp_rank for c in explained.workers] == [0, 1, 2, 3]
        lease = await router.route(request)
        assert rank(lease) == first[start]
        lease.release()


@pytest.mark.parametrize("policy", [Policy.least_loaded, Policy.round_robin, Policy.kv])
async def test_load_spreads_over_ranks_and_counts_for_the_worker(policy: Policy) -> None:
    router = await ranked_router(policy=policy)
    leases = [await router.route(routing_request(8)) for _ in range(8)]
    assert sorted(rank(lease) or 0 for lease in leases) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert loads(router) == {0: (8, 64, 16, 8)}
    (worker,) = router.workers
    assert [target.active for target in worker.targets] == [2, 2, 2, 2]
    for lease in leases:
        lease.report_first_token()
        lease.report_progress(2 * BLOCK)
        lease.release()
    assert worker.served == 8
    assert_nothing_left(router)


async def test_session_keeps_its_rank() -> None:
    router = await ranked_router(policy=Policy.session)
    ranks = {rank(await router.route(routing_request(8))) for _ in range(4)}
    assert len(ranks) == 4, "without a session, by load"


async def test_ranks_share_the_limits_of_the_worker() -> None:
    limits = AdmissionLimits(max_requests_per_worker=8)
    router = await ranked_router(limits=limits)
    granted = [router.try_route(routing_request(8)) for _ in range(8)]
    assert all(granted)
    assert router.try_route(routing_request(8)) is None
    lease = granted[5]
    assert lease
    lease.release()
    again = router.try_route(routing_request(8))
    assert again
    assert rank(again) == rank(lease)


async def test_broken_connection_or_loss_concerns_all_ranks() -> None:
    router = await ranked_router()
    await router.add_worker(1, Role.aggregated, "http://n1:1")
    leases = [await router.route(routing_request(8)) for _ in range(5)]
    assert {lease.decode.rank for lease in leases} == {0, 1}
    leases[0].report_connection_lost(0)
    assert {(await router.route(routing_request(8))).decode.rank for _ in range(3)} == {1}
    router.remove_worker(0)
    lost = [lease for lease in leases if lease.decode.rank == 0]
    assert [lease.worker_lost.result() for lease in lost] == [0] * 4
    assert router.kv_state.overlaps([1, 2]) == {}


async def test_worker_without_steering_is_one_target_with_a_share_of_its_blocks() -> None:
    router = await ranked_router(PrefixCaches(4, steered=False))
    lease = await router.route(routing_request(8 * BLOCK, *range(8)))
    assert lease.decode.dp_rank is None
    assert router.kv_state.overlaps(list(range(8))) == {0: 2}
    await router.add_worker(0, Role.aggregated, URL)
    (await router.route(routing_request(8 * BLOCK, *range(8)))).release()
    assert router.kv_state.overlaps(list(range(8))) == {0: 8}, "restarted with one rank"


@pytest.mark.parametrize(("blocks", "share"), [(1, {}), (3, {}), (4, {0: 1}), (7, {0: 1})])
async def test_share_below_one_block_is_no_overlap(blocks: int, share: dict[int, int]) -> None:
    router = await ranked_router(PrefixCaches(4, steered=False))
    (await router.route(routing_request(blocks * BLOCK, *range(blocks)))).release()
    assert router.kv_state.overlaps(list(range(8))) == share


async def test_blocks_of_a_removed_rank_are_forgotten() -> None:
    router = await ranked_router()
    (await router.route(routing_request(3 * BLOCK, 1, 2, 3))).release()
    assert list(router.kv_state.overlaps([1, 2, 3]).values()) == [3]
    await router.add_worker(0, Role.aggregated, URL, caches=FOUR)
    assert router.kv_state.overlaps([1, 2, 3]) == {}


async def test_heads_exchange_the_load_of_each_rank() -> None:
    router = await ranked_router()
    lease = await router.route(routing_request(8))
    assert rank(lease) == 0
    published = encode_loads("a", router.workers)
    assert b'"http://n0:1#0":{"prefill_tokens":8' in published
    assert b'"http://n0:1#3":{"prefill_tokens":0' in published
    other = await ranked_router()
    busy = WorkerDemand(prefill_tokens=800, blocks=9, active=2)
    other.set_peer_load("a", {f"{URL}#{i}": busy for i in (0, 1, 3)})
    assert rank(await other.route(routing_request(8))) == 2


async def test_prefill_and_decode_ranks_are_selected_separately() -> None:
    router = new_router(TopologyKind.disaggregated)
    await router.add_worker(0, Role.prefill, "http://p:1", caches=PrefixCaches(2))
    await router.add_worker(1, Role.decode, "http://d:1", caches=FOUR)
    leases = [await router.route(routing_request(400, *range(i, i + 4))) for i in (0, 10, 20, 30)]
    split = [lease for lease in leases if lease.prefill]
    assert {lease.prefill.dp_rank for lease in split if lease.prefill} == {0, 1}
    assert {rank(lease) for lease in leases} == {0, 1, 2, 3}
    for lease in leases:
        lease.report_prefilled()
        lease.release()
    assert_nothing_left(router)
    await router.drain(1)
    assert router.try_route(routing_request(8)) is None
    router.set_role(1, Role.decode)
    assert router.try_route(routing_request(8)) is not None
