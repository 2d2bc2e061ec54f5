"""What passes over the unix socket between router and frontends.

Frames are a length (uint32, little-endian) and a MessagePack record. Asks are answered in any
order; notes are not answered. When a connection ends, its leases are released and its asks
forgotten. The socket lies in a private folder, so both ends are of the same user.
"""

import asyncio
from typing import cast

import msgspec

from hpc_dynamo.messages import View
from hpc_dynamo.router.lease import Ask, Target

LARGEST_FRAME_BYTES = 64 << 20


class Asked(msgspec.Struct, frozen=True, array_like=True, tag=0):
    id: int
    ask: Ask


class Withdrawn(msgspec.Struct, frozen=True, array_like=True, tag=1):
    id: int


class Noted(msgspec.Struct, frozen=True, array_like=True, tag=2):
    id: int
    note: int
    value: int


class Told(msgspec.Struct, frozen=True, array_like=True, tag=3):
    content: bytes


class Granted(msgspec.Struct, frozen=True, array_like=True, tag=4):
    id: int
    prefill: Target | None
    decode: Target


class Denied(msgspec.Struct, frozen=True, array_like=True, tag=5):
    id: int
    kind: str
    message: str
    status: int
    retry_after_s: float = 0.0


class Lost(msgspec.Struct, frozen=True, array_like=True, tag=6):
    id: int
    rank: int


class Seen(msgspec.Struct, frozen=True, array_like=True, tag=7):
    view: View


Up = Asked | Withdrawn | Noted | Told
Down = Granted | Denied | Lost | Seen
ENCODER = msgspec.msgpack.Encoder()


class Wire(asyncio.Protocol):
    """Frames in both directions."""

    def __init__(self) -> None:
        self._in = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._in += data
        start = 0
        while len(self._in) - start >= 4:
            size = int.from_bytes(self._in[start : start + 4], "little")
            if size > LARGEST_FRAME_BYTES:
                self._transport.abort()
                return
            end = start + 4 + size
            if len(self._in) < end:
                break
            self.frame(bytes(self._in[start + 4 : end]))
            start = end
        del self._in[:start]

    def frame(self, content: bytes) -> None:
        raise NotImplementedError

    def send(self, record: msgspec.Struct) -> None:
        content = ENCODER.encode(record)
        self._transport.write(len(content).to_bytes(4, "little") + content)
