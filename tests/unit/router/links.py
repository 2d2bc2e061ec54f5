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
    Router,
    RouterServer,
    RunView,
)
from tests.unit.router.requests import SOON_S, ask, refused, settle


class Head:
    """What the server's owner shows and hears."""

    def __init__(self, routers: Mapping[str, Router], path: Path) -> None:
        """`router` is the first of them."""
        router = next(iter(routers.values()))
        self.router, self.path = router, path
        self.view = RunView(models={"": ModelAvailability(names=("demo",))})
        self.remotes = list[RemoteRouter]()
        self.told = asyncio.Queue[tuple[int, bytes]]()
        self.left = asyncio.Queue[int]()
        self.server = RouterServer(
            routers, path, lambda: self.view, lambda *told: self.told.put_nowait(told),
            self.left.put_nowait, self.put,
        )  # fmt: skip

    async def put(self, rank: int, asleep: bool) -> bytes:
        raise RequestFailed(f"worker {rank} does not sleep here", status=409)

    async def frontend(self) -> RemoteRouter:
        return await self._known(await RemoteRouter.connect(self.path))

    async def _known(self, remote: RemoteRouter) -> RemoteRouter:
        """When the server has it: asyncio loses a connection that it accepts while it closes."""
        self.remotes.append(remote)
        remote.report_to_head(RunView())
        await asyncio.wait_for(self.told.get(), SOON_S)
        return remote

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        sock.setblocking(False)
        return sock

    async def mortal(self) -> tuple[RemoteRouter, socket.socket]:
        """A frontend, and what to cut."""
        sock = self.raw()
        loop = asyncio.get_running_loop()
        _, remote = await loop.create_unix_connection(RemoteRouter, sock=sock)
        return await self._known(remote), sock


def cut(sock: socket.socket) -> None:
    """As if the process had been killed."""
    sock.shutdown(socket.SHUT_RDWR)


@asynccontextmanager
async def served(router: Router, **others: Router) -> AsyncIterator[Head]:
    """`others` by model."""
    with TemporaryDirectory(prefix="router-") as folder:
        head = Head({"": router, **others}, Path(folder) / "link")
        async with head.server:
            yield head
        async with asyncio.timeout(SOON_S):
            for remote in head.remotes:
                await remote.closed


async def quiet(router: Router) -> None:
    async with asyncio.timeout(SOON_S):
        await router.wait_idle()


async def heard(head: Head, remote: RemoteRouter) -> tuple[int, int]:
    """How many leases are out and how many wait, when all that was said before has come."""
    await settle()
    remote.report_to_head(RunView())
    await asyncio.wait_for(head.told.get(), SOON_S)
    traffic = head.router.traffic()
    return traffic.active, traffic.queued


async def shown(remote: RemoteRouter) -> RunView:
    """The view, when all that the head said before has come."""
    await refused(remote, ask(exclude=(0, 1)), AllWorkersTried)
    return remote.view


async def soon(future: "asyncio.Future[int] | asyncio.Future[None]") -> int | None:
    async with asyncio.timeout(SOON_S):
        return await future
