"""Peer load counts in the selection of workers, and in no limit."""

import msgspec
import pytest

from hpc_dynamo.config import Policy, Role
from hpc_dynamo.router import AdmissionLimits, RequestRouter, WorkerDemand, decode_loads
from hpc_dynamo.router.scheduling.peer_loads import encode_loads
from tests.unit.router.requests import ONE, aggregated_router, disaggregated_router, routing_request

BUSY = WorkerDemand(prefill_tokens=40, blocks=10, active=3)
AT = "http://n0:1"


def others(router: RequestRouter) -> dict[int, WorkerDemand]:
    return {m.rank: m.peer_load for m in router.workers}


@pytest.mark.parametrize("policy", [Policy.kv, Policy.least_loaded, Policy.session])
async def test_router_prefers_worker_without_peer_load(policy: Policy) -> None:
    router = await aggregated_router(2, policy=policy)
    router.set_peer_load("peer", {AT: BUSY})
    for _ in range(3):
        assert (await router.route(routing_request(8))).decode.rank == 1
    router.set_peer_load("peer", {})
    assert (await router.route(routing_request(8))).decode.rank == 0


async def test_last_load_of_each_peer_counts_once() -> None:
    router = await aggregated_router(2)
    for load in (BUSY, BUSY, WorkerDemand(1, 2, 3)):
        router.set_peer_load("a", {AT: load, "http://unknown:1": BUSY})
    router.set_peer_load("b", {AT: WorkerDemand(10, 20, 30)})
    assert others(router) == {0: WorkerDemand(11, 22, 33), 1: WorkerDemand()}
    router.set_peer_load("a", {})
    assert others(router) == {0: WorkerDemand(10, 20, 30), 1: WorkerDemand()}


async def test_readded_worker_keeps_its_peer_load() -> None:
    router = await aggregated_router(1)
    router.set_peer_load("peer", {AT: BUSY})
    await router.add_worker(0, Role.aggregated, AT)
    assert others(router) == {0: BUSY}


async def test_admission_limits_ignore_peer_load() -> None:
    router = await aggregated_router(
        1, AdmissionLimits(max_requests_per_worker=1, max_prefill_tokens_per_worker=1)
    )
    router.set_peer_load("peer", {AT: BUSY})
    assert router.try_route(routing_request(8)) is not None
    assert router.try_route(routing_request(8)) is None, "ours count"


async def test_peer_prompts_make_a_prefill_worker_busy() -> None:
    router = await disaggregated_router()
    assert router.explain(routing_request(400)).reason == "disaggregated"
    router.set_peer_load("peer", {"http://p:1": WorkerDemand(prefill_tokens=10_000)})
    assert router.explain(routing_request(400)).reason == "local_prefill_busy"


async def test_published_loads_contain_only_own_load() -> None:
    router = await aggregated_router(2, ONE)
    router.set_peer_load("peer", {AT: BUSY, "http://n1:1": BUSY})
    lease = await router.route(routing_request(8))
    said = decode_loads(encode_loads(router.head_name, router.workers))
    assert said.head == router.head_name
    mine = next(m.url for m in router.workers if m.rank == lease.decode.rank)
    assert said.workers == {AT: WorkerDemand(), "http://n1:1": WorkerDemand()} | {
        mine: WorkerDemand(8, 2, 1)
    }
    with pytest.raises(msgspec.DecodeError):
        decode_loads(b'{"head": "a", "workers": {"http://n0:1": 3}}')
