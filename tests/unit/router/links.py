"""A router behind a real unix socket."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import (
    AllWorkersTried,
    ModelAvailability,
    RemoteRouter,
    RequestRouter,
    RouterServer,
    RunView,
)
from tests.unit.router.requests import DEADLINE_S, assert_rejected, routing_request, run_callbacks

ZERO_DIVISION_RANK = 77  # sleep mode of this worker fails by a defect


class Head:
    """The owner of the server: its view, and the reports that it receives."""

    def __init__(self, routers: Mapping[str, RequestRouter], path: Path) -> None:
        """Serve the routers; `router` is the first one."""
        router = next(iter(routers.values()))
        self.router, self.path = router, path
        self.view = RunView(models={"": ModelAvailability(names=("demo",))})
        self.remotes = list[RemoteRouter]()
        self.reports = asyncio.Queue[tuple[int, bytes]]()
        self.disconnected = asyncio.Queue[int]()
        self.server = RouterServer(
            routers, path, lambda: self.view, lambda *reports: self.reports.put_nowait(reports),
            self.disconnected.put_nowait, self.put,
        )  # fmt: skip

    async def put(self, rank: int, asleep: bool) -> bytes:
        if rank == ZERO_DIVISION_RANK:
            raise ZeroDivisionError
        raise RequestFailed(f"worker {rank} does not sleep here", status=409)

    async def frontend(self) -> RemoteRouter:
        return await self._known(await RemoteRouter.connect(self.path))

    async def _known(self, remote: RemoteRouter) -> RemoteRouter:
        """Wait until the server knows the client: asyncio loses connections during its close."""
        self.remotes.append(remote)
        remote.report_to_head(RunView())
        await asyncio.wait_for(self.reports.get(), DEADLINE_S)
        return remote

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        sock.setblocking(False)
        return sock

    async def killable_frontend(self) -> tuple[RemoteRouter, socket.socket]:
        """Return a frontend and the socket that `cut` closes."""
        sock = self.raw()
        loop = asyncio.get_running_loop()
        _, remote = await loop.create_unix_connection(RemoteRouter, sock=sock)
        return await self._known(remote), sock


def cut(sock: socket.socket) -> None:
    """Close the socket as if the process had been killed."""
    sock.shutdown(socket.SHUT_RDWR)


@asynccontextmanager
async def served(router: RequestRouter, **others: RequestRouter) -> AsyncIterator[Head]:
    """Serve a router, and the others by model."""
    with TemporaryDirectory(prefix="router-") as folder:
        head = Head({"": router, **others}, Path(folder) / "link")
        async with head.server:
            yield head
        async with asyncio.timeout(DEADLINE_S):
            for remote in head.remotes:
                await remote.closed


async def wait_idle(router: RequestRouter) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await router.wait_idle()


async def counts(head: Head, remote: RemoteRouter) -> tuple[int, int]:
    """Return (active leases, queued requests) after all earlier messages were processed."""
    await run_callbacks()
    remote.report_to_head(RunView())
    await asyncio.wait_for(head.reports.get(), DEADLINE_S)
    traffic = head.router.traffic()
    return traffic.active, traffic.queued


async def current_view(remote: RemoteRouter) -> RunView:
    """Return the view after all earlier messages were processed."""
    await assert_rejected(remote, routing_request(exclude=(0, 1)), AllWorkersTried)
    return remote.view


async def wait_for(future: "asyncio.Future[int] | asyncio.Future[None]") -> int | None:
    async with asyncio.timeout(DEADLINE_S):
        return await future
