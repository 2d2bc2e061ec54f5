"""SGLang's hand-over: both ranks get a request at once, with the number of a room to meet in.

Source: SGLang 0.5.23, srt/disaggregation (common/conn.py, prefill.py, decode.py). As in SGLang, the
prefill rank has a bootstrap server and answers when its blocks were read. A room with only one side
times out. Unlike SGLang, the prompt is computed before the decode rank requests it, and the
decode rank reads the blocks (handover.NixlHandover) instead of receiving them.

A request for several answers (`n` > 1) never ends, as in SGLang 0.5.23 (tokenizer_manager.py,
_handle_batch_request; sgl-project/sglang#30723): all its samples share one room. The prefill rank
answers, the decode rank waits until the client leaves.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec

from hpc_dynamo.errors import HpcDynamoError, KvTransferError
from hpc_dynamo.http import HttpRequest, HttpServer, ResponseWriter
from hpc_dynamo.simulator.api_error import Refused, error_body
from hpc_dynamo.simulator.kv_handoff import NixlHandover
from hpc_dynamo.simulator.sequence import Job, Sampling, Source

NOBODY_HOST = "2.2.2.2"  # SGLang's FAKE_BOOTSTRAP_HOST: a request of health checks, for one rank
PATH = "/room/"
JSON = (b"content-type", b"application/json")


class Invited(Protocol):
    """The fields of a request that say where its two ranks meet."""

    bootstrap_host: str | None
    bootstrap_port: int | None
    bootstrap_room: int | None

    @property
    def choices(self) -> int: ...


class Meeting:
    """What a rank of that role does with such fields. `port` is its own bootstrap server's."""

    def __init__(self, role: str, port: int) -> None:
        self.role, self.port = role, port

    def hangs(self, request: Invited) -> bool:
        """Return True if this rank never answers the request."""
        apart = request.bootstrap_room is not None and request.bootstrap_host != NOBODY_HOST
        return self.role == "decode" and apart and request.choices > 1

    def send(self, job: Job, request: Invited, index: int) -> None:
        """To its room; prompts of one request have rooms in a row. Raises Refused."""
        host, room = request.bootstrap_host, request.bootstrap_room
        if room is None:
            what = "Invalid request: Disaggregated request received without bootstrap room id."
            raise Refused(what, param="bootstrap_room")
        if host == NOBODY_HOST:
            return
        if self.role == "prefill":
            if request.choices == 1:
                job.produce, job.room = True, room + index
            job.sampling = Sampling(1, ignore_eos=True)  # how it goes on is the other's affair
        elif host is None or request.bootstrap_port is None:
            raise Refused("bootstrap_host and bootstrap_port are missing", param="bootstrap_host")
        else:
            number = room + index
            job.source = Source("", f"room {number}", host, request.bootstrap_port, (), number)


class Rooms:
    """Of a prefill rank: what decode ranks come for. Nobody waits longer than `timeout_s`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._rooms = dict[int, asyncio.Future[Source | KvTransferError]]()

    async def enter(self, number: int) -> Source:
        """The blocks, once they are computed. Raises KvTransferError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await asyncio.shield(self._room(number))
        except TimeoutError as e:
            what = f"room {number}: no prompt was computed for it within {self._timeout_s:g} s"
            hint = "did the prefill rank get the same request?"
            raise KvTransferError(what, hint=hint) from e
        finally:
            self._rooms.pop(number, None)
        if isinstance(found, KvTransferError):
            raise found
        return found

    def open(self, number: int, source: Source) -> None:
        """Let in who comes for these blocks."""
        room = self._room(number)
        if not room.done():
            room.set_result(source)

    def close(self, number: int) -> bool:
        """Send away who waits. Whether blocks were there that nobody had asked for."""
        room = self._rooms.pop(number, None)
        if room is None:
            return False
        if room.done():
            return True
        room.set_result(KvTransferError(f"room {number}: the prefill rank gave the request up"))
        return False

    def _room(self, number: int) -> "asyncio.Future[Source | KvTransferError]":
        """Made by who comes first."""
        if number not in self._rooms:
            self._rooms[number] = asyncio.get_running_loop().create_future()
        return self._rooms[number]


class RoomHandover(NixlHandover):
    """See NixlHandover. Both sides meet in `rooms` of the prefill rank."""

    def __init__(self, *parts: Any, rooms: Rooms) -> None:
        super().__init__(*parts)
        self._rooms = rooms
        self._kept = dict[bytes, Job]()
        self._entering = dict[int, asyncio.Task[Source]]()

    def lease(self, job: Job, blocks: list[int]) -> dict[str, object]:
        """Nothing is told in the answer, which waits until the blocks were taken."""
        super().lease(job, blocks)
        if job.room is not None:
            job.kept = True
            self._kept[job.id.encode()] = job
            at = self._endpoint
            here = Source(self._agent.name, job.id, at.host, at.port, tuple(blocks))
            self._rooms.open(job.room, here)
        return {}

    def _over(self, request: bytes, error: HpcDynamoError | None) -> None:
        job = self._kept.pop(request, None)
        if job is None or job.room is None:
            return
        self._rooms.close(job.room)
        job.kept = False
        for answer in job.choices:
            answer.error = error
        job.on_news()

    def give_up(self, job: Job) -> None:
        """Blocks that a decode rank was told of are its until it has them, or the lease ends."""
        if job.source and job.source.room in self._entering:
            self._entering[job.source.room].cancel()
        if job.room is not None and self._rooms.close(job.room):
            request = job.id.encode()
            self._kept.pop(request, None)
            _, blocks = self._leases.pop(request, (0.0, []))
            self._free(blocks)

    async def pull(self, source: Source, local: Sequence[int], skip: int) -> None:
        """See NixlHandover; waits for the prefill rank to have computed the prompt."""
        await super().pull(await self._admitted(source), local, skip)

    async def decline(self, source: Source) -> None:
        """Nothing: who sent the request to both ranks ends it on both."""

    async def _admitted(self, source: Source) -> Source:
        if source.room is None:
            return source
        entering = asyncio.create_task(self._enter(source))
        self._entering[source.room] = entering
        try:
            await asyncio.wait([entering])  # its deadline is that of the room
        finally:
            entering.cancel()
            del self._entering[source.room]
        if entering.cancelled():
            raise KvTransferError(f"{source.request_id}: the request was given up")
        return entering.result()

    async def _enter(self, source: Source) -> Source:
        url = f"http://{source.host}:{source.port}"
        try:
            async with self._client.send("GET", url, f"{PATH}{source.room}") as answer:
                content = await answer.read()
        except OSError as e:
            what = f"{source.request_id}: the bootstrap server at {url} cannot be asked: {e!r}"
            raise KvTransferError(what, hint="is that prefill rank alive?") from e
        if answer.status != 200:
            raise KvTransferError(f"{source.request_id} at {url}: {content.decode()}")
        return msgspec.json.decode(content, type=Source)


@asynccontextmanager
async def receiving(rooms: Rooms, host: str, port: int, key: str) -> AsyncIterator[int]:
    """The bootstrap server; gives its port. Who enters must have the run's key."""
    wanted = f"Bearer {key}".encode() if key else b""

    async def handle(request: HttpRequest, reply: ResponseWriter) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        name = request.path.removeprefix(PATH)
        if wanted and not hmac.compare_digest(given, wanted):
            return _answer(reply, 401, error_body("Invalid or missing API key.", 401))
        if not name.isdigit():
            return _answer(reply, 404, error_body("Not Found", 404))
        try:
            _answer(reply, 200, await rooms.enter(int(name)))
        except KvTransferError as e:
            _answer(reply, 504, error_body(e.message, 504))

    async with HttpServer(handle) as server:
        yield await server.listen(host, port)


def _answer(reply: ResponseWriter, status: int, body: object) -> None:
    reply.send(status, msgspec.json.encode(body), [JSON])
