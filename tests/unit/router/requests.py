"""Routers, requests and common assertions for the tests of this folder."""

import asyncio
from array import array
from collections.abc import Iterable
from typing import TypeVar

import pytest

from hpc_dynamo.config import Policy, Role, TopologyKind
from hpc_dynamo.config import Router as RouterConfig
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import AdmissionLimits, Lease, RemoteRouter, RequestRouter, RoutingRequest

Failure = TypeVar("Failure", bound=RequestFailed)
Routes = RequestRouter | RemoteRouter
BLOCK = 4  # tokens
DEADLINE_S = 60.0

ONE = AdmissionLimits(max_requests_per_worker=1)
SHORT = AdmissionLimits(max_requests_per_worker=1, queue_timeout_s=0.02)


def hashes(blocks: Iterable[int]) -> bytes:
    return array("Q", blocks).tobytes()


def routing_request(
    tokens: int = 0, *blocks: int, exclude: tuple[int, ...] = (), split: bool = True
) -> RoutingRequest:
    return RoutingRequest(
        prompt_tokens=tokens, block_hashes=hashes(blocks), exclude=exclude, may_disaggregate=split
    )


def new_router(
    kind: TopologyKind = TopologyKind.aggregated,
    limits: AdmissionLimits | None = None,
    policy: Policy = Policy.kv,
    transfer_cost_tokens: int | None = None,
) -> RequestRouter:
    config = RouterConfig(
        policy=policy,
        block_tokens=BLOCK,
        index_capacity_blocks=64,
        decode_weight=1.0,
        transfer_cost_tokens=transfer_cost_tokens,
    )
    return RequestRouter(kind, config, limits)


async def aggregated_router(
    count: int, limits: AdmissionLimits | None = None, policy: Policy = Policy.kv
) -> RequestRouter:
    """Return a router with aggregated workers, ranks from 0."""
    router = new_router(TopologyKind.aggregated, limits, policy)
    for rank in range(count):
        await router.add_worker(rank, Role.aggregated, f"http://n{rank}:1")
    return router


async def disaggregated_router(limits: AdmissionLimits | None = None) -> RequestRouter:
    """Return a router with prefill worker 0 and decode worker 1."""
    router = new_router(TopologyKind.disaggregated, limits)
    await router.add_worker(0, Role.prefill, "http://p:1")
    await router.add_worker(1, Role.decode, "http://d:1")
    return router


async def run_callbacks() -> None:
    """Run callbacks and their callbacks."""
    for _ in range(5):
        await asyncio.sleep(0)


async def queue_requests(
    router: Routes, request: RoutingRequest, count: int = 1
) -> list[asyncio.Task[Lease]]:
    """Queue this many requests."""
    tasks = [asyncio.create_task(router.route(request)) for _ in range(count)]
    await run_callbacks()
    assert not any(task.done() for task in tasks)
    return tasks


async def assert_rejected(router: Routes, request: RoutingRequest, kind: type[Failure]) -> Failure:
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(kind) as error:
            await router.route(request)
    return error.value


def loads(router: RequestRouter) -> dict[int, tuple[int, int, int, int]]:
    """Return rank -> (active, prefill tokens, blocks, running)."""
    return {m.rank: (m.active, m.prefill_tokens, m.blocks, m.running) for m in router.workers}


def assert_nothing_left(router: RequestRouter) -> None:
    traffic = router.traffic()
    assert (traffic.active, traffic.queued) == (0, 0)
    assert set(loads(router).values()) <= {(0, 0, 0, 0)}
