"""Loads are never negative, and they are zero at the end, for any order of events."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import (
    AdmissionLimits,
    Lease,
    RequestRouter,
    RoutedWorker,
    RoutingHints,
    RoutingRequest,
)
from tests.unit.router.links import cut, served, wait_idle
from tests.unit.router.requests import (
    DEADLINE_S,
    Routes,
    new_router,
    routing_request,
    run_callbacks,
)

LIMITS = AdmissionLimits(
    max_requests_per_worker=2, max_queued_requests=4, queue_timeout_s=DEADLINE_S * 3, avoid_s=0.001
)
ROLES = {
    TopologyKind.aggregated: [Role.aggregated],
    TopologyKind.disaggregated: [Role.prefill, Role.decode],
}
WAYS = [
    "route", "route", "take", "cancel", "prefilled", "first_token", "progress", "broken",
    "release", "release_again", "join", "join", "leave", "turn", "cut",
]  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(WAYS), st.integers(0, 7)), min_size=25, max_size=80)
Steps = Sequence[tuple[str, int]]
Way = Callable[[TopologyKind, Steps], Coroutine[None, None, None]]


class EventPlayer:
    """Executes random steps on a router; `ends` send requests.

    The number of a step selects among the objects present.
    """

    def __init__(self, kind: TopologyKind, router: RequestRouter, ends: Sequence[Routes]) -> None:
        self.roles, self.router, self.ends = ROLES[kind], router, ends
        self.victim: socket.socket | None = None  # connection of the first end
        self.tasks, self.leases = list[asyncio.Task[Lease]](), list[Lease]()
        self.over, self.seen_workers = list[Lease](), set[RoutedWorker]()

    async def run(self, steps: Steps) -> None:
        for step, number in steps:
            await self.step(step, number)
            self.check()
        await self.end()

    def check(self) -> None:
        self.seen_workers |= set(self.router.workers)
        for m in self.seen_workers:
            assert min(m.active, m.prefill_tokens, m.blocks, m.running, m.avoid_count) >= 0, m
            assert m.running <= m.active <= 2, m

    async def step(self, step: str, number: int) -> None:
        match step:
            case "route":
                end = self.ends[number % len(self.ends)]
                self.tasks.append(asyncio.create_task(end.route(self.routing_request(number))))
            case "take":
                await run_callbacks()
                self.take()
            case "cancel" if self.tasks:
                task = self.tasks[number % len(self.tasks)]
                if task.cancel():
                    self.tasks.remove(task)
            case "join" | "leave" | "turn" | "cut":
                await self.happen(step, number)
            case "release_again" if self.over:
                self.over[number % len(self.over)].release()
            case _ if self.leases:
                self.report(step, number)

    async def happen(self, step: str, number: int) -> None:
        match step:
            case "join":
                role = self.roles[number % len(self.roles)]
                await self.router.add_worker(number % 4, role, "")
            case "leave":
                self.router.remove_worker(number % 4)
            case "turn":
                await asyncio.sleep(0)
            case "cut" if self.victim:
                cut(self.victim)
                self.victim = None

    def routing_request(self, number: int) -> RoutingRequest:
        exclude = (number - 5,) if number > 5 else ()
        request = routing_request(
            3 * number, *range(number // 2), exclude=exclude, split=number != 3
        )
        hints = RoutingHints(priority=number % 3, workers=(number % 4,) if number in (1, 4) else ())
        return msgspec.structs.replace(request, hints=hints)

    def report(self, step: str, number: int) -> None:
        lease = self.leases[number % len(self.leases)]
        match step:
            case "progress":
                lease.report_progress(number)
            case "broken":
                lease.report_connection_lost(number % 4)
            case "release":
                self.leases.remove(lease)
                self.over.append(lease)
                lease.release()
            case "prefilled":
                lease.report_prefilled()
            case "first_token":
                lease.report_first_token()

    def take(self) -> None:
        """Collect granted leases."""
        done = [task for task in self.tasks if task.done()]
        self.tasks = [task for task in self.tasks if not task.done()]
        for task in done:
            if not isinstance(task.exception(), RequestFailed):
                self.leases.append(task.result())

    async def end(self) -> None:
        """With workers of all roles, no request stays queued."""
        for rank, role in enumerate(self.roles, start=10):
            await self.router.add_worker(rank, role, "")
        async with asyncio.timeout(DEADLINE_S):
            while self.tasks or self.leases:
                while self.leases:
                    self.report("release", 0)
                if self.tasks:
                    await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
                self.take()
        await wait_idle(self.router)
        self.check()
        for m in self.seen_workers:
            assert (m.active, m.prefill_tokens, m.blocks, m.running) == (0, 0, 0, 0), m
        traffic = self.router.traffic()
        assert (traffic.active, traffic.queued) == (0, 0)


async def in_process(kind: TopologyKind, steps: Steps) -> None:
    router = new_router(kind, LIMITS)
    await EventPlayer(kind, router, [router]).run(steps)


async def through_sockets(kind: TopologyKind, steps: Steps) -> None:
    router = new_router(kind, LIMITS)
    async with served(router) as head:
        dies, sock = await head.killable_frontend()
        play = EventPlayer(kind, router, [dies, await head.frontend()])
        play.victim = sock
        await play.run(steps)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("way", [in_process, through_sockets])
@pytest.mark.parametrize("kind", TopologyKind)
def test_any_order_of_events_leaves_no_load(
    kind: TopologyKind, way: Way, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    problems = list[object]()

    @given(STEPS)
    def play(steps: Steps) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, what: problems.append(what))
            runner.run(way(kind, steps))
        assert not problems

    play()
