"""The connection when one of its ends dies or sends invalid data."""

import asyncio

import pytest

from hpc_dynamo.config import Role
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import (
    NoWorker,
    RoutingHints,
    RoutingRequest,
    RunView,
    Target,
)
from hpc_dynamo.router.rpc.protocol import (
    ENCODER,
    MAX_FRAME_BYTES,
    LeaseUpdate,
    ReportToHead,
    RouteCall,
)
from hpc_dynamo.router.scheduling.lease import LeaseEvent
from tests.unit.router.links import (
    ZERO_DIVISION_RANK,
    Head,
    counts,
    cut,
    served,
    wait_for,
    wait_idle,
)
from tests.unit.router.requests import (
    DEADLINE_S,
    ONE,
    aggregated_router,
    assert_nothing_left,
    assert_rejected,
    new_router,
    queue_requests,
)


async def test_dead_frontend_releases_its_leases(head: Head) -> None:
    lives, (dies, sock) = await head.frontend(), await head.killable_frontend()
    leases = [await lives.route(RoutingRequest()), await dies.route(RoutingRequest())]
    tasks = await queue_requests(dies, RoutingRequest(), 2)
    assert await counts(head, dies) == (2, 2)
    (behind,) = await queue_requests(lives, RoutingRequest())
    assert await counts(head, lives) == (2, 3)
    cut(sock)
    (await asyncio.wait_for(behind, DEADLINE_S)).release()
    leases[0].release()
    await wait_idle(head.router)
    assert head.disconnected.qsize() == 1
    await asyncio.wait(tasks, timeout=DEADLINE_S)
    assert [type(task.exception()) for task in tasks] == [NoWorker] * 2


async def test_frontend_without_head_rejects_requests() -> None:
    async with served(await aggregated_router(1, ONE)) as head:
        remote = await head.frontend()
        lease = await remote.route(RoutingRequest())
        task, gone = await queue_requests(remote, RoutingRequest(), 2)
        remote.closed.add_done_callback(
            lambda _: gone.cancel()
        )  # in the same iteration of the event loop
    await wait_for(remote.closed)
    assert await wait_for(lease.worker_lost) == 0
    with pytest.raises(NoWorker, match="the job is ending"):
        await task
    await asyncio.wait([gone])
    assert gone.cancelled()
    await assert_rejected(remote, RoutingRequest(), NoWorker)
    lease.report_progress(1)
    lease.release()
    remote.report_to_head(RunView())
    remote.close()
    assert_nothing_left(head.router)


async def test_last_view_arrives_before_the_close() -> None:
    async with served(new_router()) as head:
        remote = await head.frontend()
        head.view = RunView(draining=True)
        head.server.push_view()
    await wait_for(remote.closed)
    assert remote.view.draining


async def test_connect_without_router_fails(head: Head) -> None:
    head.path.unlink()
    with pytest.raises(FileNotFoundError):
        await head.frontend()


def framed(*contents: bytes) -> bytes:
    return b"".join(len(c).to_bytes(4, "little") + c for c in contents)


ASKED = ENCODER.encode(RouteCall(1, RoutingRequest()))
GARBAGE = {
    "noise": framed(b"\xff\x00garbage"),
    "empty": framed(b""),
    "no such record": framed(ENCODER.encode([99, 1])),
    "for the other side": framed(ENCODER.encode([4, 1, None, [0, ""]])),
    "no such note": framed(ENCODER.encode([2, 1, 17, 0])),
    "negative": framed(ENCODER.encode(LeaseUpdate(1, LeaseEvent.progress, -5))),
    "twice": framed(ASKED, ASKED),
    "oversized": (MAX_FRAME_BYTES + 1).to_bytes(4, "little"),
    "after garbage": framed(b"\xff", ENCODER.encode(RouteCall(2, RoutingRequest()))),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_invalid_frame_closes_only_its_connection(head: Head, garbage: bytes) -> None:
    remote, sock, loop = await head.frontend(), head.raw(), asyncio.get_running_loop()
    lease = await remote.route(RoutingRequest())
    with sock:
        await loop.sock_sendall(sock, garbage)
        async with asyncio.timeout(DEADLINE_S):
            await head.disconnected.get()
    assert head.router.traffic().active == 1
    other = await remote.route(RoutingRequest())
    for one in (lease, other):
        one.release()
    await wait_idle(head.router)


INF = float("inf")
INVALID_HINTS = {
    "infinite": RoutingHints(temperature=0.5, overlap_weight=INF),
    "not a number": RoutingHints(decode_weight=float("nan")),
    "negative": RoutingHints(temperature=-1.0),
    "large priority": RoutingHints(priority=2**40),
    "large rank": RoutingHints(workers=(2**40,)),
    "many ranks": RoutingHints(workers=tuple(range(5000))),
}


@pytest.mark.parametrize("hints", INVALID_HINTS.values(), ids=INVALID_HINTS.keys())
async def test_invalid_hints_fail_only_their_request(head: Head, hints: RoutingHints) -> None:
    """The link between frontend and head was lost, with all streams of the frontend."""
    remote = await head.frontend()
    lease = await remote.route(RoutingRequest())
    for call in (remote.route, remote.explain):
        with pytest.raises(RequestFailed, match="invalid routing request") as error:
            await asyncio.wait_for(call(RoutingRequest(hints=hints)), DEADLINE_S)
        assert error.value.status == 400
    assert not remote.closed.done()
    lease.release()
    await wait_idle(head.router)


async def test_defect_affects_only_its_message(head: Head) -> None:
    remote = await head.frontend()
    received, head.server.on_report = head.server.on_report, lambda *_: 1 / 0  # type: ignore[assignment]
    remote.report_to_head(RunView())
    with pytest.raises(RequestFailed, match="internal error") as error:
        await remote.set_sleep(ZERO_DIVISION_RANK, asleep=True)
    assert error.value.status == 500
    head.server.on_report = received
    (await remote.route(RoutingRequest())).release()
    await wait_idle(head.router)


async def test_frames_may_arrive_in_any_pieces(head: Head) -> None:
    sock, loop = head.raw(), asyncio.get_running_loop()
    with sock:
        request = [ENCODER.encode(RouteCall(number, RoutingRequest())) for number in range(3)]
        for byte in framed(*request, ENCODER.encode(ReportToHead(b"!"))):
            await loop.sock_sendall(sock, bytes([byte]))
            await asyncio.sleep(0)
        assert (await asyncio.wait_for(head.reports.get(), DEADLINE_S))[1] == b"!"
        traffic = head.router.traffic()
        assert (traffic.active, traffic.queued) == (2, 1)
    await wait_idle(head.router)


async def test_added_worker_serves_requests_queued_over_the_connection() -> None:
    async with served(new_router()) as head:
        remote = await head.frontend()
        (task,) = await queue_requests(remote, RoutingRequest())
        assert await counts(head, remote) == (0, 1)
        await head.router.add_worker(7, Role.aggregated, "http://late:1")
        lease = await asyncio.wait_for(task, DEADLINE_S)
        assert lease.decode == Target(7, "http://late:1")
        lease.release()
        await wait_idle(head.router)
