"""Messages on the unix socket between router and frontends.

A frame is a length (uint32, little-endian) and a MessagePack record. See the package for the
sequence. The socket is in a private folder, so both ends belong to the same user.
"""

import asyncio
import logging
from typing import cast

import msgspec

from hpc_dynamo.defects import contain_defects
from hpc_dynamo.router.rpc.view import RunView
from hpc_dynamo.router.scheduling.lease import LeaseEvent, NonNegativeInt, RoutingRequest, Target

BACKLOG_BYTES = 1 << 20
MAX_FRAME_BYTES = 64 << 20


class RouteCall(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Frontend: a lease for this request; the reply is LeaseGranted or CallFailed."""

    id: int  # number of the call and then of its lease; unique per connection
    request: RoutingRequest


class CancelCall(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Frontend: drop a RouteCall and release its lease. There is no reply."""

    id: int


class LeaseUpdate(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Frontend: an event of a lease. There is no reply."""

    id: int
    event: LeaseEvent
    value: NonNegativeInt


class ReportToHead(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Frontend: a MessagePack record for the head, which the router passes on unread."""

    content: bytes


class ExplainCall(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Frontend: explain the routing of a request; the result is a RoutingExplanation."""

    id: int
    request: RoutingRequest


class LoadsCall(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Frontend, for a peer head: the result is PublishedLoads."""

    id: int


class SleepCall(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Frontend: put a worker to sleep or wake it; the result is its new state."""

    id: int
    rank: int
    asleep: bool


class LeaseGranted(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Router: the workers of a RouteCall."""

    id: int
    prefill: Target | None
    decode: Target


class CallFailed(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Router: the error of a call. `kind` is the name of its exception class."""

    id: int
    kind: str
    message: str
    status: int
    retry_after_s: float = 0.0


class LeasedWorkerLost(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Router: a worker of this lease was removed."""

    id: int
    rank: int


class CallResult(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Router: the result of ExplainCall, LoadsCall or SleepCall, as JSON."""

    id: int
    content: bytes


class ViewUpdate(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Router: the current state of the run."""

    view: RunView


ToServer = RouteCall | CancelCall | LeaseUpdate | ReportToHead | ExplainCall | LoadsCall | SleepCall
ToClient = LeaseGranted | CallFailed | LeasedWorkerLost | ViewUpdate | CallResult
ENCODER = msgspec.msgpack.Encoder()

log = logging.getLogger(__name__)


class FramedConnection(asyncio.Protocol):
    """Base of both ends: sends and receives frames."""

    def __init__(self) -> None:
        self._in, self._out = bytearray(), list[bytes]()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The transport of uvloop has all methods but is not a subclass.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Handle the records of complete frames. Only a protocol error closes the connection."""
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
            self._handle(self._in[start + 4 : end])
            start = end
        del self._in[:start]

    def _handle(self, content: bytes | bytearray) -> None:
        with contain_defects(log, bytes(content[:100]), passed=msgspec.DecodeError):
            self.on_message(content)

    def _abort(self, what: str) -> None:
        """Close the connection after a protocol error."""
        log.error("closed a connection between router and frontend: protocol error: %s", what)
        self._transport.abort()

    def on_message(self, content: bytes | bytearray) -> None:
        """Handle one record. Raises msgspec.DecodeError."""
        raise NotImplementedError

    def send(self, record: msgspec.Struct) -> None:
        """Queue a record.

        All records of one iteration of the event loop are sent with a single system call.
        """
        content = ENCODER.encode(record)
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out += (len(content).to_bytes(4, "little"), content)

    def _flush(self) -> None:
        # After the close, a write is useless, and uvloop raises.
        if not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    @property
    def backlogged(self) -> bool:
        """Return True if the peer reads too slowly; updates that can wait should be skipped."""
        return self._transport.get_write_buffer_size() > BACKLOG_BYTES

    def close(self) -> None:
        """Send the queued records, then close."""
        self._flush()
        self._transport.close()
