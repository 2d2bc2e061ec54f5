"""The link when one of its ends dies or talks nonsense."""

import asyncio

import pytest

from hpc_dynamo.config import Role
from hpc_dynamo.router import (
    NoWorker,
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
from tests.unit.router.links import Head, cut, heard, quiet, served, soon
from tests.unit.router.requests import (
    ONE,
    SOON_S,
    assert_nothing_left,
    new_router,
    refused,
    waiting,
    whole,
)


async def test_a_dead_frontend_holds_nothing(head: Head) -> None:
    lives, (dies, sock) = await head.frontend(), await head.mortal()
    leases = [await lives.route(RoutingRequest()), await dies.route(RoutingRequest())]
    tasks = await waiting(dies, RoutingRequest(), 2)
    assert await heard(head, dies) == (2, 2)
    (behind,) = await waiting(lives, RoutingRequest())
    assert await heard(head, lives) == (2, 3)
    cut(sock)
    (await asyncio.wait_for(behind, SOON_S)).release()
    leases[0].release()
    await quiet(head.router)
    assert head.left.qsize() == 1
    await asyncio.wait(tasks, timeout=SOON_S)
    assert [type(task.exception()) for task in tasks] == [NoWorker] * 2


async def test_when_the_head_goes() -> None:
    async with served(await whole(1, ONE)) as head:
        remote = await head.frontend()
        lease = await remote.route(RoutingRequest())
        task, gone = await waiting(remote, RoutingRequest(), 2)
        remote.closed.add_done_callback(lambda _: gone.cancel())  # both learn it in one turn
    await soon(remote.closed)
    assert await soon(lease.worker_lost) == 0
    with pytest.raises(NoWorker, match="the job is ending"):
        await task
    await asyncio.wait([gone])
    assert gone.cancelled()
    await refused(remote, RoutingRequest(), NoWorker)
    lease.report_progress(1)
    lease.release()
    remote.report_to_head(RunView())
    remote.close()
    assert_nothing_left(head.router)


async def test_what_was_shown_last_arrives() -> None:
    async with served(new_router()) as head:
        remote = await head.frontend()
        head.view = RunView(draining=True)
        head.server.push_view()
    await soon(remote.closed)
    assert remote.view.draining


async def test_nobody_listens(head: Head) -> None:
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
    "half a hash": framed(ENCODER.encode([0, 1, [5, b"1234567"]])),
    "twice": framed(ASKED, ASKED),
    "oversized": (MAX_FRAME_BYTES + 1).to_bytes(4, "little"),
    "after garbage": framed(b"\xff", ENCODER.encode(RouteCall(2, RoutingRequest()))),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_ends_its_connection_alone(head: Head, garbage: bytes) -> None:
    remote, sock, loop = await head.frontend(), head.raw(), asyncio.get_running_loop()
    lease = await remote.route(RoutingRequest())
    with sock:
        await loop.sock_sendall(sock, garbage)
        async with asyncio.timeout(SOON_S):
            await head.left.get()
    assert head.router.traffic().active == 1
    other = await remote.route(RoutingRequest())
    for one in (lease, other):
        one.release()
    await quiet(head.router)


async def test_frames_may_come_in_any_pieces(head: Head) -> None:
    sock, loop = head.raw(), asyncio.get_running_loop()
    with sock:
        asked = [ENCODER.encode(RouteCall(number, RoutingRequest())) for number in range(3)]
        for byte in framed(*asked, ENCODER.encode(ReportToHead(b"!"))):
            await loop.sock_sendall(sock, bytes([byte]))
            await asyncio.sleep(0)
        assert (await asyncio.wait_for(head.told.get(), SOON_S))[1] == b"!"
        traffic = head.router.traffic()
        assert (traffic.active, traffic.queued) == (2, 1)
    await quiet(head.router)


async def test_a_worker_comes_for_those_who_wait() -> None:
    async with served(new_router()) as head:
        remote = await head.frontend()
        (task,) = await waiting(remote, RoutingRequest())
        assert await heard(head, remote) == (0, 1)
        await head.router.add_worker(7, Role.aggregated, "http://late:1")
        lease = await asyncio.wait_for(task, SOON_S)
        assert lease.decode == Target(7, "http://late:1")
        lease.release()
        await quiet(head.router)
