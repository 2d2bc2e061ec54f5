"""SGLang's protocol: both ranks receive a request at once, with the number of a bootstrap room.

    router          prefill rank             bootstrap server        decode rank
      | request -------->|                          |                    |
      | the same request ------------------------------------------------>|
      |                  | prompt computed: open -->|<-- GET /room/N -----|
      |                  |                          |--- block ids ------>|
      |                  |<------------- NIXL READ, notification ---------|
      |<- response ------|                          |<-- output           |

Source: SGLang 0.5.23, srt/disaggregation (common/conn.py, prefill.py, decode.py). As in SGLang,
the prefill rank has a bootstrap server and responds when its blocks were read. A room with only
one side times out. Unlike in SGLang, the prompt is computed before the decode rank requests it,
and the decode rank reads the blocks (kv_handoff.NixlHandoff) instead of receiving them.

A request for several choices (`n` > 1) never ends, as in SGLang 0.5.23 (tokenizer_manager.py,
_handle_batch_request; sgl-project/sglang#30723): all its samples share one room. The prefill rank
responds, and the decode rank waits until the client leaves.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from hpc_dynamo.errors import HpcDynamoError, KvTransferError
from hpc_dynamo.http import HttpRequest, HttpServer, ResponseWriter
from hpc_dynamo.simulator.api_error import RequestRejected, error_body, send_json
from hpc_dynamo.simulator.generation_request import GenerationRequest
from hpc_dynamo.simulator.kv_handoff import NixlHandoff
from hpc_dynamo.simulator.sequence import RemoteBlocks, SamplingParams, SequenceGroup

FAKE_BOOTSTRAP_HOST = "2.2.2.2"  # as in SGLang: health checks, which use only one rank
PATH = "/room/"


class SglangRank:
    """Role of a worker with SGLang's protocol. `port` is that of its own bootstrap server."""

    def __init__(self, role: str, port: int, ranks: int = 1) -> None:
        self.role, self.port, self._ranks = role, port, ranks

    def hangs(self, request: GenerationRequest) -> bool:
        """Return True if this rank never responds to the request."""
        fake = request.bootstrap_room is None or request.bootstrap_host == FAKE_BOOTSTRAP_HOST
        return self.role == "decode" and not fake and request.choices > 1

    def assign_room(self, group: SequenceGroup, request: GenerationRequest, index: int) -> None:
        """Set up prompt `index` of a request for its room. Raises RequestRejected.

        The prompts of one request have consecutive bootstrap rooms. The remainder of the number
        selects the data-parallel rank of a prefill worker (follow_bootstrap_room_scheduler).
        """
        host, first = request.bootstrap_host, request.bootstrap_room
        if first is None:
            what = "Invalid request: Disaggregated request received without bootstrap room id."
            raise RequestRejected(what, "bootstrap_room")
        room = first + index
        if self.role == "prefill":
            group.dp_rank = room % self._ranks
        if host == FAKE_BOOTSTRAP_HOST:
            return
        if self.role == "prefill":
            if request.choices == 1:
                group.keep_blocks, group.room = True, room
            group.sampling = SamplingParams(1, ignore_eos=True)  # the decode rank does the rest
        elif host is None or request.bootstrap_port is None:
            what = "bootstrap_host and bootstrap_port are missing"
            raise RequestRejected(what, "bootstrap_host")
        else:
            port, dp_rank = request.bootstrap_port, request.disagg_prefill_dp_rank
            group.remote_blocks = RemoteBlocks("", f"room {room}", host, port, (), room, dp_rank)


class BootstrapRooms:
    """Bootstrap rooms of a prefill rank. Decode ranks wait in them up to `timeout_s`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._rooms = dict[int, asyncio.Future[RemoteBlocks | KvTransferError]]()

    async def wait(self, number: int) -> RemoteBlocks:
        """Return the location of the blocks once they are computed. Raises KvTransferError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await asyncio.shield(self._room(number))
        except TimeoutError as e:
            what = f"room {number}: no prompt was computed for it within {self._timeout_s:g} s"
            hint = "check that the prefill rank received the same request"
            raise KvTransferError(what, hint=hint) from e
        finally:
            self._rooms.pop(number, None)
        if isinstance(found, KvTransferError):
            raise found
        return found

    def open(self, number: int, blocks: RemoteBlocks) -> None:
        """Give the location of the computed blocks to the waiting decode rank."""
        room = self._room(number)
        if not room.done():
            room.set_result(blocks)

    def close(self, number: int) -> bool:
        """End a room. Return True if its blocks were computed but not requested."""
        room = self._rooms.pop(number, None)
        if room is None:
            return False
        if room.done():
            return True
        room.set_result(KvTransferError(f"room {number}: the prefill rank aborted the request"))
        return False

    def _room(self, number: int) -> "asyncio.Future[RemoteBlocks | KvTransferError]":
        """Return the room, which the side that arrives first creates."""
        if number not in self._rooms:
            self._rooms[number] = asyncio.get_running_loop().create_future()
        return self._rooms[number]


class BootstrapHandoff(NixlHandoff):
    """NixlHandoff whose two sides find each other in the prefill rank's `rooms`."""

    def __init__(self, *args: Any, rooms: BootstrapRooms) -> None:
        super().__init__(*args)
        self._rooms = rooms
        self._awaiting_pull = dict[bytes, SequenceGroup]()
        self._entering = dict[int, asyncio.Task[RemoteBlocks]]()

    def lease(self, group: SequenceGroup, blocks: list[int]) -> dict[str, object]:
        """Keep `blocks` and open the room. The response waits until they are pulled."""
        super().lease(group, blocks)
        if group.room is not None:
            group.awaiting_pull = True
            self._awaiting_pull[group.id.encode()] = group
            host, port = self._side_channel.host, self._side_channel.port
            here = RemoteBlocks(self._agent.name, group.id, host, port, tuple(blocks))
            self._rooms.open(group.room, here)
        return {}

    def _lease_ended(self, group_id: bytes, error: HpcDynamoError | None) -> None:
        group = self._awaiting_pull.pop(group_id, None)
        if group is None or group.room is None:
            return
        self._rooms.close(group.room)
        group.awaiting_pull = False
        for sequence in group.choices:
            sequence.error = error
        group.on_update()

    def abort(self, group: SequenceGroup) -> None:
        """End the room of a group. Blocks that a decode rank requested stay leased."""
        if group.remote_blocks and group.remote_blocks.room in self._entering:
            self._entering[group.remote_blocks.room].cancel()
        if group.room is not None and self._rooms.close(group.room):
            group_id = group.id.encode()
            self._awaiting_pull.pop(group_id, None)
            _, blocks = self._leases.pop(group_id, (0.0, []))
            self._release(blocks)

    async def pull(self, remote: RemoteBlocks, local: Sequence[int], skip: int) -> None:
        """See NixlHandoff. Waits until the prefill rank has computed the prompt."""
        await super().pull(await self._resolve(remote), local, skip)

    async def decline(self, remote: RemoteBlocks) -> None:
        """Do nothing: the sender of the request aborts it on both ranks."""

    async def _resolve(self, remote: RemoteBlocks) -> RemoteBlocks:
        if remote.room is None:
            return remote
        entering = asyncio.create_task(self._enter(remote))
        self._entering[remote.room] = entering
        try:
            await asyncio.wait([entering])  # the room has a deadline
        finally:
            entering.cancel()
            del self._entering[remote.room]
        if entering.cancelled():
            raise KvTransferError(f"{remote.request_id}: the request was aborted")
        return entering.result()

    async def _enter(self, remote: RemoteBlocks) -> RemoteBlocks:
        url = f"http://{remote.host}:{remote.port}"
        try:
            async with self._client.send("GET", url, room_path(remote)) as response:
                content = await response.read()
        except OSError as e:
            what = f"{remote.request_id}: no connection to the bootstrap server at {url}: {e!r}"
            raise KvTransferError(what, hint="check that the prefill rank runs") from e
        if response.status != 200:
            raise KvTransferError(f"{remote.request_id} at {url}: {content.decode()}")
        return msgspec.json.decode(content, type=RemoteBlocks)


def room_path(remote: RemoteBlocks) -> str:
    """Return the path of a room, with the prefill rank in the query if the request names it."""
    query = "" if remote.prefill_dp_rank is None else f"?{remote.prefill_dp_rank}"
    return f"{PATH}{remote.room}{query}"


@asynccontextmanager
async def bootstrap_server(
    rooms: Sequence[BootstrapRooms], host: str, port: int, key: str
) -> AsyncIterator[int]:
    """Run the bootstrap server of all ranks, each with its `rooms`, and yield its port.

    Requests need the run's key. A room that another rank opens than the one that is expected times
    out, as in SGLang (decode.py, _resolve_prefill_dp_rank).
    """
    expected = f"Bearer {key}".encode() if key else b""

    async def handle(request: HttpRequest, reply: ResponseWriter) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        room, expected_rank = request.path.removeprefix(PATH), request.query
        if expected and not hmac.compare_digest(given, expected):
            return send_json(reply, error_body("Invalid or missing API key.", 401), 401)
        if not room.isdigit():
            return send_json(reply, error_body("Not Found", 404), 404)
        rank = int(expected_rank) if expected_rank.isdigit() else int(room)
        try:
            send_json(reply, await rooms[rank % len(rooms)].wait(int(room)))
        except KvTransferError as e:
            send_json(reply, error_body(e.message, 504), 504)

    async with HttpServer(handle) as server:
        yield await server.listen(host, port)
