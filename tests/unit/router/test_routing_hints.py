"""What requests may want of their routing: priority, workers, policy; and what they are told."""

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
    ask,
    assert_nothing_left,
    hashes,
    new_router,
    refused,
    settle,
    split,
    waiting,
    whole,
)

PREFILL, DECODE = (Role.prefill, "http://p"), (Role.decode, "http://d")


def wanting(**fields: object) -> RoutingRequest:
    return RoutingRequest(hints=RoutingHints(**fields))  # type: ignore[arg-type]  # fields of any kind


async def test_the_line_is_served_by_priority_then_in_order() -> None:
    router = await whole(1, ONE)
    lease = await router.route(RoutingRequest())
    tasks = {
        name: (await waiting(router, wanting(priority=priority)))[0]
        for name, priority in (("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 0))
    }
    served = list[str]()
    while tasks:
        lease.release()
        await settle()
        (name,) = [name for name, task in tasks.items() if task.done()]
        served.append(name)
        lease = await tasks.pop(name)
    assert served == ["b", "d", "a", "e", "c"]
    lease.release()
    assert_nothing_left(router)


async def test_in_a_full_line_the_last_yields_to_one_that_counts_more() -> None:
    router = await whole(1, AdmissionLimits(max_requests_per_worker=1, max_queued_requests=2))
    lease = await router.route(RoutingRequest())
    (stays,) = await waiting(router, wanting(priority=1))
    (yields,) = await waiting(router, RoutingRequest())
    await refused(router, wanting(priority=-1), Overloaded)
    await refused(router, RoutingRequest(), Overloaded)
    (comes,) = await waiting(router, wanting(priority=1))
    with pytest.raises(Overloaded) as error:
        await yields
    assert error.value.status == 429
    assert router.traffic().refused == 3
    for task in (stays, comes):
        lease.release()
        lease = await task
    lease.release()
    assert_nothing_left(router)


async def test_named_workers_and_no_others() -> None:
    router = await whole(3, ONE)
    lease = await router.route(wanting(workers=(2,)))
    assert lease.decode.rank == 2
    (task,) = await waiting(router, wanting(workers=(2,)))
    assert (await router.route(RoutingRequest())).decode.rank in (0, 1)  # that one holds up nobody
    lease.release()
    assert (await task).decode.rank == 2
    error = await refused(router, wanting(workers=(1, 9)), NoSuchWorker)
    assert (error.status, error.message) == (400, "no worker 9 is ready; ready ones: 0, 1, 2")


async def test_a_worker_of_one_role_leaves_the_other_free() -> None:
    router = await split()
    lease = await router.route(wanting(workers=(0,)))
    assert (lease.prefill and lease.prefill.rank, lease.decode.rank) == (0, 1)


async def test_a_direct_router_wants_to_be_told() -> None:
    router = await whole(2, policy=Policy.direct)
    assert "X-Worker-Rank" in (await refused(router, RoutingRequest(), NoSuchWorker)).message
    assert (await router.route(wanting(workers=(1,)))).decode.rank == 1


async def test_a_request_may_have_a_policy_of_its_own() -> None:
    router = await whole(2)
    first = await router.route(ask(8, 1, 2))
    again = RoutingRequest(
        prompt_tokens=8, block_hashes=hashes([1, 2]), hints=RoutingHints(policy=Policy.round_robin)
    )
    other = await router.route(again)
    assert other.decode.rank != first.decode.rank
    assert router.decisions.by_worker == {
        (first.decode.rank, "aggregated", "kv"): 1,
        (other.decode.rank, "aggregated", "round_robin"): 1,
    }


async def test_a_request_may_weigh_for_itself() -> None:
    router = await whole(2)
    lease = await router.route(ask(8, 1, 2))
    lease.report_first_token()
    lease.report_progress(BLOCK)
    cached = lease.decode.rank  # three blocks held there, two more to compute elsewhere
    for weight, same in ((2.0, True), (1.0, False), (0.0, False)):
        asked = RoutingRequest(
            prompt_tokens=8, block_hashes=hashes([1, 2]), hints=RoutingHints(overlap_weight=weight)
        )
        assert (router.explain(asked).decode == cached) == same


async def test_why_changes_nothing_and_tells_what_would_happen() -> None:
    router = await whole(2)
    lease = await router.route(ask(10, 1, 2))
    before = repr(sorted(router.workers, key=lambda m: m.rank))
    why = router.explain(ask(12, 1, 2, 3))
    assert repr(sorted(router.workers, key=lambda m: m.rank)) == before
    assert (why.policy, why.reason, why.decode) == (Policy.kv, "aggregated", 1 - lease.decode.rank)
    there, other = sorted(why.workers, key=lambda w: w.rank != lease.decode.rank)
    assert (there.overlap_blocks, there.left_tokens, there.prefill_tokens) == (2, 12 - 8, 10)
    assert (there.blocks, there.active, there.chosen) == (3, 1, False)
    assert (other.overlap_blocks, other.left_tokens, other.chosen) == (0, 12, True)
    assert there.cost == (4 + 10) / BLOCK + 3
    assert other.cost == 12 / BLOCK
    assert (await router.route(ask(12, 1, 2, 3))).decode.rank == why.decode


async def test_why_nobody_would_get_it_now() -> None:
    router = await whole(1, ONE)
    lease = await router.route(RoutingRequest())
    why = router.explain(RoutingRequest())
    assert (why.reason, why.decode, why.workers[0].usable) == ("queued", None, False)
    lease.release()


async def test_wishes_and_reasons_pass_the_link(head: Head) -> None:
    remote = await head.frontend()
    lease: Lease = await remote.route(wanting(workers=(1,), session="s", priority=3))
    assert lease.decode.rank == 1
    why = await remote.explain(ask(8, 1, 2))
    assert b'"decode":0' in why
    with pytest.raises(NoSuchWorker):
        await remote.explain(wanting(workers=(7,)))
    lease.release()


@pytest.mark.parametrize(
    ("handover_tokens", "why"), [(0, "disaggregated"), (2, "local_short_prompt")]
)
async def test_a_prompt_that_is_there_is_not_handed_over(handover_tokens: int, why: str) -> None:
    router = new_router(TopologyKind.disaggregated, handover_tokens=handover_tokens)
    await router.add_worker(0, *PREFILL)
    await router.add_worker(1, *DECODE)
    first = await router.route(ask(16, 1, 2, 3, 4))
    first.report_prefilled()
    first.release()
    asked = ask(17, 1, 2, 3, 4)  # one token is left on both
    assert router.explain(asked).reason == why
    (await router.route(asked)).release()
    assert_nothing_left(router)


@pytest.mark.parametrize(
    ("handover_tokens", "queued", "why"),
    [
        (0, 0, "disaggregated"),
        (7, 0, "disaggregated"),
        (9, 0, "local_short_prompt"),
        (0, 7, "disaggregated"),
        (0, 9, "local_prefill_busy"),
    ],
)
async def test_the_decode_worker_prefills_what_a_hand_over_would_delay(
    handover_tokens: int, queued: int, why: str
) -> None:
    """A prompt of 8 tokens counts twice there (local_penalty), so 8 more tokens are the bound."""
    router = new_router(TopologyKind.disaggregated, handover_tokens=handover_tokens)
    await router.add_worker(0, *PREFILL)
    await router.add_worker(1, *DECODE)
    busy = (
        await router.route(
            RoutingRequest(prompt_tokens=queued, hints=RoutingHints(overlap_weight=1.0))
        )
        if queued
        else None
    )
    lease = await router.route(ask(8))
    assert (lease.prefill is None) == (why != "disaggregated")
    assert router.decisions.by_reason[why] >= 1
    lease.release()
    if busy:
        busy.release()
    assert_nothing_left(router)
