"""What other heads have on the workers counts in choices, and in no limit."""

import msgspec
import pytest

from hpc_dynamo.config import Policy, Role
from hpc_dynamo.router import Limits, Load, Router, heard
from hpc_dynamo.router.scheduling.peer_loads import publish
from tests.unit.router.requests import ONE, ask, split, whole

BUSY = Load(prefill_tokens=40, blocks=10, active=3)
AT = "http://n0:1"


def others(router: Router) -> dict[int, Load]:
    return {m.rank: m.others for m in router.members}


@pytest.mark.parametrize("policy", [Policy.kv, Policy.least_loaded, Policy.session])
async def test_the_worker_that_others_leave_free_is_taken(policy: Policy) -> None:
    router = await whole(2, policy=policy)
    router.heed("peer", {AT: BUSY})
    for _ in range(3):
        assert (await router.route(ask(8))).decode.rank == 1
    router.heed("peer", {})
    assert (await router.route(ask(8))).decode.rank == 0


async def test_each_head_counts_once_and_the_last_word_holds() -> None:
    router = await whole(2)
    for load in (BUSY, BUSY, Load(1, 2, 3)):
        router.heed("a", {AT: load, "http://unknown:1": BUSY})
    router.heed("b", {AT: Load(10, 20, 30)})
    assert others(router) == {0: Load(11, 22, 33), 1: Load()}
    router.heed("a", {})
    assert others(router) == {0: Load(10, 20, 30), 1: Load()}


async def test_a_worker_that_joins_again_is_as_busy_as_others_say() -> None:
    router = await whole(1)
    router.heed("peer", {AT: BUSY})
    await router.join(0, Role.aggregated, AT)
    assert others(router) == {0: BUSY}


async def test_limits_are_of_our_own_requests() -> None:
    router = await whole(1, Limits(worker_requests=1, worker_prefill_tokens=1))
    router.heed("peer", {AT: BUSY})
    assert router.route_now(ask(8)) is not None
    assert router.route_now(ask(8)) is None, "ours count"


async def test_prompts_of_others_swamp_a_prefill_worker() -> None:
    router = await split()
    assert router.explain(ask(400)).why == "split"
    router.heed("peer", {"http://p:1": Load(prefill_tokens=10_000)})
    assert router.explain(ask(400)).why == "swamped"


async def test_what_is_published_is_our_own_alone() -> None:
    router = await whole(2, ONE)
    router.heed("peer", {AT: BUSY, "http://n1:1": BUSY})
    lease = await router.route(ask(8))
    said = heard(publish(router.name, router.members))
    assert said.head == router.name
    mine = next(m.url for m in router.members if m.rank == lease.decode.rank)
    assert said.workers == {AT: Load(), "http://n1:1": Load()} | {mine: Load(8, 2, 1)}
    with pytest.raises(msgspec.DecodeError):
        heard(b'{"head": "a", "workers": {"http://n0:1": 3}}')
