"""The router's end of the unix socket: one client a frontend process.

When a connection ends, its leases are released and its asks forgotten. The socket lies in a
private folder, so both ends are of the same user.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Self

import msgspec

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router.router import Router
from hpc_dynamo.router.rpc.protocol import (
    Asked,
    Denied,
    Explain,
    Explained,
    Granted,
    LoadsAsked,
    Lost,
    Noted,
    Put,
    Seen,
    Told,
    Up,
    Wire,
    Withdrawn,
)
from hpc_dynamo.router.rpc.view import View
from hpc_dynamo.router.scheduling.lease import Ask, Lease, Note, Overloaded
from hpc_dynamo.router.scheduling.peer_loads import publish
from hpc_dynamo.router.scheduling.queue import Waiting

VIEW_S = 1.0


class RouterServer:
    """Serves routers, by model, to frontends, and shows them `view()` on every change and every
    second.

    `told(frontend, content)` gets what frontends tell, `left(frontend)` is called when one is
    gone; a frontend is a number that is not used again. `put(rank, asleep)` does so for a client.
    """

    def __init__(
        self,
        routers: Mapping[str, Router],
        path: Path,
        view: Callable[[], View],
        told: Callable[[int, bytes], None],
        left: Callable[[int], None],
        put: Callable[[int, bool], Awaitable[bytes]],
    ) -> None:
        self.routers, self._path, self._view = routers, path, view
        self._news = next(iter(routers.values())).news
        self.told, self.left, self.put, self.numbers = told, left, put, count(1)
        self.clients = set[_Client]()
        self.tasks, self._ended = asyncio.TaskGroup(), False

    async def __aenter__(self) -> Self:
        await self.tasks.__aenter__()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Client(self), str(self._path))
        self._path.chmod(0o600)
        self._clock = self.tasks.create_task(self._tick(), name="view")
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self._clock.cancel()
        self.hang_up()
        await self.tasks.__aexit__(None, None, None)

    def show(self) -> None:
        """Push the view now."""
        view = Seen(self._view())
        for client in self.clients:
            if not client.behind:
                client.send(view)

    def hang_up(self) -> None:
        """End all connections, also those to come; who listens knows that the job ends."""
        self._ended = True
        for client in list(self.clients):
            client.close()

    def greet(self, client: "_Client") -> None:
        client.send(Seen(self._view()))
        if self._ended:
            client.close()
        else:
            self.clients.add(client)

    async def _tick(self) -> None:
        while True:
            self._news.clear()
            self.show()
            with suppress(TimeoutError):
                async with asyncio.timeout(VIEW_S):
                    await self._news.wait()

    def router(self, ask: Ask) -> Router:
        """Raises RequestFailed where the model has none."""
        if ask.model not in self.routers:
            raise RequestFailed(f"no workers of a model {ask.model!r} are here", status=404)
        return self.routers[ask.model]

    def forget(self, waiting: Waiting) -> None:
        self.router(waiting.ask).forget(waiting)

    def published(self) -> bytes:
        """What we have on each worker, see loads.Published."""
        routers = tuple(self.routers.values())
        return publish(routers[0].name, [m for router in routers for m in router.members])


class _Client(Wire):
    """One frontend, at the server's end."""

    decoder = msgspec.msgpack.Decoder(Up)

    def __init__(self, server: RouterServer) -> None:
        super().__init__()
        self._server, self._number = server, next(server.numbers)
        self._leases = dict[int, Lease]()  # by the frontend's own ids
        self._waiting = dict[int, Waiting]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.greet(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.clients.discard(self)
        while self._waiting:
            self._server.forget(self._waiting.popitem()[1])
        for lease in self._leases.values():
            lease.release()
        self._leases.clear()
        self._server.left(self._number)

    def frame(self, content: bytes | bytearray) -> None:
        match self.decoder.decode(content):
            case Asked(id=id_) if id_ in self._leases or id_ in self._waiting:
                raise msgspec.ValidationError(f"number {id_} is in use")
            case Asked(id=id_, ask=ask):
                self._ask(id_, ask)
            case Noted(id=id_, note=note, value=value):
                self._note(id_, note, value)
            case Withdrawn(id=id_):
                self._withdraw(id_)
            case Explain(id=id_, ask=ask):
                self._explain(id_, ask)
            case LoadsAsked(id=id_):
                self.send(Explained(id_, self._server.published()))
            case Put(id=id_, rank=rank, asleep=asleep):
                self._server.tasks.create_task(self._put(id_, rank, asleep))
            case Told(content=told):
                self._server.told(self._number, told)

    def _ask(self, id_: int, ask: Ask) -> None:
        try:
            router = self._server.router(ask)
            lease = router.route_now(ask)
        except RequestFailed as e:
            self.send(_denial(id_, e))
            return
        if lease:
            self._grant(id_, lease)
        else:
            waiting = self._waiting[id_] = router.enqueue(ask)
            waiting.granted.add_done_callback(lambda granted: self._waited(id_, granted))

    def _explain(self, id_: int, ask: Ask) -> None:
        try:
            why = self._server.router(ask).explain(ask)
        except RequestFailed as e:
            self.send(_denial(id_, e))
        else:
            self.send(Explained(id_, msgspec.json.encode(why)))

    async def _put(self, id_: int, rank: int, asleep: bool) -> None:
        try:
            said = await self._server.put(rank, asleep)
        except RequestFailed as e:
            self.send(_denial(id_, e))
        else:
            self.send(Explained(id_, said))

    def _waited(self, id_: int, granted: asyncio.Future[Lease]) -> None:
        if self._waiting.pop(id_, None) is None:
            return  # withdrawn
        try:
            self._grant(id_, granted.result())
        except RequestFailed as e:
            self.send(_denial(id_, e))

    def _grant(self, id_: int, lease: Lease) -> None:
        self._leases[id_] = lease
        lease.lost.add_done_callback(lambda lost: self._lose(id_, lost))
        self.send(Granted(id_, lease.prefill, lease.decode))

    def _lose(self, id_: int, lost: asyncio.Future[int]) -> None:
        if id_ in self._leases and not lost.cancelled():
            self.send(Lost(id_, lost.result()))

    def _note(self, id_: int, note: Note, value: int) -> None:
        lease = self._leases.get(id_)
        if lease is None:
            return
        if note is Note.released:
            del self._leases[id_]
            lease.release()
        else:
            lease.note(note, value)

    def _withdraw(self, id_: int) -> None:
        waiting = self._waiting.pop(id_, None)
        if waiting:
            self._server.forget(waiting)
        else:
            self._note(id_, Note.released, 0)


def _denial(id_: int, error: RequestFailed) -> Denied:
    after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
    return Denied(id_, type(error).__name__, error.message, error.status, after_s)
