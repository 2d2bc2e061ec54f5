"""What passes over the unix socket between router and frontends.

Frames are a length (uint32, little-endian) and a MessagePack record. Asks are answered in any
order; notes are not answered. When a connection ends, its leases are released and its asks
forgotten. The socket lies in a private folder, so both ends are of the same user.
"""

import asyncio
import logging
from typing import cast

import msgspec

from hpc_dynamo.router.rpc.view import RunView
from hpc_dynamo.router.scheduling.lease import LeaseEvent, NonNegativeInt, RoutingRequest, Target

BACKLOG_BYTES = 1 << 20
MAX_FRAME_BYTES = 64 << 20


class RouteCall(msgspec.Struct, frozen=True, array_like=True, tag=0):
    id: int
    ask: RoutingRequest


class CancelCall(msgspec.Struct, frozen=True, array_like=True, tag=1):
    id: int


class LeaseUpdate(msgspec.Struct, frozen=True, array_like=True, tag=2):
    id: int
    event: LeaseEvent
    value: NonNegativeInt


class ReportToHead(msgspec.Struct, frozen=True, array_like=True, tag=3):
    content: bytes


class ExplainCall(msgspec.Struct, frozen=True, array_like=True, tag=8):
    id: int
    ask: RoutingRequest


class LoadsCall(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """By another head, see loads.Published; Explained answers."""

    id: int


class SleepCall(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """A worker to sleep, or awake; Explained answers."""

    id: int
    rank: int
    asleep: bool


class LeaseGranted(msgspec.Struct, frozen=True, array_like=True, tag=4):
    id: int
    prefill: Target | None
    decode: Target


class CallFailed(msgspec.Struct, frozen=True, array_like=True, tag=5):
    id: int
    kind: str
    message: str
    status: int
    retry_after_s: float = 0.0


class LeasedWorkerLost(msgspec.Struct, frozen=True, array_like=True, tag=6):
    id: int
    rank: int


class CallResult(msgspec.Struct, frozen=True, array_like=True, tag=9):
    id: int
    content: bytes  # JSON of router.why.Why, of router.loads.Published, or of how a worker is


class ViewUpdate(msgspec.Struct, frozen=True, array_like=True, tag=7):
    view: RunView


ToServer = RouteCall | CancelCall | LeaseUpdate | ReportToHead | ExplainCall | LoadsCall | SleepCall
ToClient = LeaseGranted | CallFailed | LeasedWorkerLost | ViewUpdate | CallResult
ENCODER = msgspec.msgpack.Encoder()

log = logging.getLogger(__name__)


class FramedConnection(asyncio.Protocol):
    """Frames in both directions."""

    def __init__(self) -> None:
        self._in, self._out = bytearray(), list[bytes]()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._in += data
        try:
            self._split_frames()
        except msgspec.DecodeError as e:
            self._abort(str(e))

    def _split_frames(self) -> None:
        start = 0
        while len(self._in) - start >= 4:
            size = int.from_bytes(self._in[start : start + 4], "little")
            if size > MAX_FRAME_BYTES:
                self._abort(f"a frame of {size} bytes")
                return
            end = start + 4 + size
            if len(self._in) < end:
                break
            self.on_message(self._in[start + 4 : end])
            start = end
        del self._in[:start]

    def _abort(self, what: str) -> None:
        """Who sends this speaks another language."""
        log.error("the link between router and frontend is cut: %s", what)
        self._transport.abort()

    def on_message(self, content: bytes | bytearray) -> None:
        """One record has come. Raises msgspec.DecodeError."""
        raise NotImplementedError

    def send(self, record: msgspec.Struct) -> None:
        """Goes out at the end of this turn of the event loop, with all that is said in it: one
        system call where requests are many."""
        content = ENCODER.encode(record)
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out += (len(content).to_bytes(4, "little"), content)

    def _flush(self) -> None:
        if not self._transport.is_closing():  # else nobody will read it, and uvloop would raise
            self._transport.write(b"".join(self._out))
        self._out.clear()

    @property
    def backlogged(self) -> bool:
        """The other side reads more slowly than we write; what can wait should."""
        return self._transport.get_write_buffer_size() > BACKLOG_BYTES

    def close(self) -> None:
        """After what was said."""
        self._flush()
        self._transport.close()
