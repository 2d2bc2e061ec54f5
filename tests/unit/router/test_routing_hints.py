"""Routing hints of requests (priority, workers, policy, weights), and explanations."""

import pytest

from hpc_dynamo.config import Policy, Role, TopologyKind
from hpc_dynamo.router import (
    AdmissionLimits,
    Lease,
    NoSuchWorker,
    Overloaded,
    RoutingHints,
    RoutingRequest,
)
from tests.unit.router.links import Head
from tests.unit.router.requests import (
    BLOCK,
    ONE,
    aggregated_router,
    assert_nothing_left,
    assert_rejected,
    disaggregated_router,
    hashes,
    new_router,
    queue_requests,
    routing_request,
    run_callbacks,
)

PREFILL, DECODE = (Role.prefill, "http://p"), (Role.decode, "http://d")


def with_hints(**fields: object) -> RoutingRequest:
    return RoutingRequest(hints=RoutingHints(**fields))  # type: ignore[arg-type]  # fields of any kind


async def test_queue_is_served_by_priority_then_arrival() -> None:
    router = await aggregated_router(1, ONE)
    lease = await router.route(RoutingRequest())
    tasks = {
        name: (await queue_requests(router, with_hints(priority=priority)))[0]
        for name, priority in (("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 0))
    }
    served = list[str]()
    while tasks:
        lease.release()
        await run_callbacks()
        (name,) = [name for name, task in tasks.items() if task.done()]
        served.append(name)
        lease = await tasks.pop(name)
    assert served == ["b", "d", "a", "e", "c"]
    lease.release()
    assert_nothing_left(router)


async def test_full_queue_rejects_its_last_request_for_a_higher_priority() -> None:
    router = await aggregated_router(
        1, AdmissionLimits(max_requests_per_worker=1, max_queued_requests=2)
    )
    lease = await router.route(RoutingRequest())
    (stays,) = await queue_requests(router, with_hints(priority=1))
    (yields,) = await queue_requests(router, RoutingRequest())
    await assert_rejected(router, with_hints(priority=-1), Overloaded)
    await assert_rejected(router, RoutingRequest(), Overloaded)
    (comes,) = await queue_requests(router, with_hints(priority=1))
    with pytest.raises(Overloaded) as error:
        await yields
    assert error.value.status == 429
    assert router.traffic().refused == 3
    for task in (stays, comes):
        lease.release()
        lease = await task
    lease.release()
    assert_nothing_left(router)


async def test_hints_restrict_the_workers() -> None:
    router = await aggregated_router(3, ONE)
    lease = await router.route(with_hints(workers=(2,)))
    assert lease.decode.rank == 2
    (task,) = await queue_requests(router, with_hints(workers=(2,)))
    assert (await router.route(RoutingRequest())).decode.rank in (0, 1)  # it does not block others
    lease.release()
    assert (await task).decode.rank == 2
    error = await assert_rejected(router, with_hints(workers=(1, 9)), NoSuchWorker)
    assert (error.status, error.message) == (400, "no worker 9 is ready; ready ones: 0, 1, 2")


async def test_hint_for_one_role_does_not_restrict_the_other() -> None:
    router = await disaggregated_router()
    lease = await router.route(with_hints(workers=(0,)))
    assert (lease.prefill and lease.prefill.rank, lease.decode.rank) == (0, 1)


async def test_direct_policy_without_named_worker_rejects_request() -> None:
    router = await aggregated_router(2, policy=Policy.direct)
    assert (
        "X-Worker-Rank" in (await assert_rejected(router, RoutingRequest(), NoSuchWorker)).message
    )
    assert (await router.route(with_hints(workers=(1,)))).decode.rank == 1


async def test_policy_hint_overrides_the_configuration() -> None:
    router = await aggregated_router(2)
    first = await router.route(routing_request(8, 1, 2))
    again = RoutingRequest(
        prompt_tokens=8, block_hashes=hashes([1, 2]), hints=RoutingHints(policy=Policy.round_robin)
    )
    other = await router.route(again)
    assert other.decode.rank != first.decode.rank
    assert router.decisions.by_worker == {
        (first.decode.rank, "aggregated", "kv"): 1,
        (other.decode.rank, "aggregated", "round_robin"): 1,
    }


async def test_weight_hints_override_the_configuration() -> None:
    router = await aggregated_router(2)
    lease = await router.route(routing_request(8, 1, 2))
    lease.report_first_token()
    lease.report_progress(BLOCK)
    cached = lease.decode.rank  # three blocks held there, two more to compute elsewhere
    for weight, same in ((2.0, True), (1.0, False), (0.0, False)):
        request = RoutingRequest(
            prompt_tokens=8, block_hashes=hashes([1, 2]), hints=RoutingHints(overlap_weight=weight)
        )
        assert (router.explain(request).decode == cached) == same


async def test_explain_reports_the_decision_without_granting() -> None:
    router = await aggregated_router(2)
    lease = await router.route(routing_request(10, 1, 2))
    before = repr(sorted(router.workers, key=lambda m: m.rank))
    why = router.explain(routing_request(12, 1, 2, 3))
    assert repr(sorted(router.workers, key=lambda m: m.rank)) == before
    assert (why.policy, why.reason, why.decode) == (Policy.kv, "aggregated", 1 - lease.decode.rank)
    there, other = sorted(why.workers, key=lambda w: w.rank != lease.decode.rank)
    assert (there.overlap_blocks, there.left_tokens, there.prefill_tokens) == (2, 12 - 8, 10)
    assert (there.blocks, there.active, there.chosen) == (3, 1, False)
    assert (other.overlap_blocks, other.left_tokens, other.chosen) == (0, 12, True)
    assert there.cost == (4 + 10) / BLOCK + 3
    assert other.cost == 12 / BLOCK
    assert (await router.route(routing_request(12, 1, 2, 3))).decode.rank == why.decode


async def test_explain_with_busy_workers_reports_queued() -> None:
    router = await aggregated_router(1, ONE)
    lease = await router.route(RoutingRequest())
    why = router.explain(RoutingRequest())
    assert (why.reason, why.decode, why.workers[0].usable) == ("queued", None, False)
    lease.release()


async def test_hints_and_explanations_pass_the_connection(head: Head) -> None:
    remote = await head.frontend()
    lease: Lease = await remote.route(with_hints(workers=(1,), session="s", priority=3))
    assert lease.decode.rank == 1
    why = await remote.explain(routing_request(8, 1, 2))
    assert b'"decode":0' in why
    with pytest.raises(NoSuchWorker):
        await remote.explain(with_hints(workers=(7,)))
    lease.release()


@pytest.mark.parametrize(
    ("transfer_cost_tokens", "why"), [(0, "disaggregated"), (2, "local_short_prompt")]
)
async def test_cached_prompt_is_prefilled_on_the_decode_worker(
    transfer_cost_tokens: int, why: str
) -> None:
    router = new_router(TopologyKind.disaggregated, transfer_cost_tokens=transfer_cost_tokens)
    await router.add_worker(0, *PREFILL)
    await router.add_worker(1, *DECODE)
    first = await router.route(routing_request(16, 1, 2, 3, 4))
    first.report_prefilled()
    first.release()
    request = routing_request(17, 1, 2, 3, 4)  # one token is left on both
    assert router.explain(request).reason == why
    (await router.route(request)).release()
    assert_nothing_left(router)


@pytest.mark.parametrize(
    ("transfer_cost_tokens", "queued", "why"),
    [
        (0, 0, "disaggregated"),
        (7, 0, "disaggregated"),
        (9, 0, "local_short_prompt"),
        (0, 7, "disaggregated"),
        (0, 9, "local_prefill_busy"),
    ],
)
async def test_decode_worker_prefills_if_a_transfer_takes_longer(
    transfer_cost_tokens: int, queued: int, why: str
) -> None:
    """A prompt of 8 tokens counts twice there (decode_prefill_penalty), so the limit is 8 more."""
    router = new_router(TopologyKind.disaggregated, transfer_cost_tokens=transfer_cost_tokens)
    await router.add_worker(0, *PREFILL)
    await router.add_worker(1, *DECODE)
    busy = (
        await router.route(
            RoutingRequest(prompt_tokens=queued, hints=RoutingHints(overlap_weight=1.0))
        )
        if queued
        else None
    )
    lease = await router.route(routing_request(8))
    assert (lease.prefill is None) == (why != "disaggregated")
    assert router.decisions.by_reason[why] >= 1
    lease.release()
    if busy:
        busy.release()
    assert_nothing_left(router)
