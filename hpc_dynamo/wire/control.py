"""Sockets between agents and head: ZMQ with CURVE.

A `ControlServer` (ROUTER) on the head node, and a `ControlClient` (DEALER) in each agent. All
processes of a run have the same key pair, from the run folder; the server accepts only that key.
Protocol: ZMTP 3.1 with CURVE (rfc.zeromq.org/spec/26).
"""

import asyncio
import logging
import os
import socket
from typing import Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from hpc_dynamo.errors import WireError
from hpc_dynamo.wire.connection_limit import ConnectionLimit, StrangerLimits

T = TypeVar("T")

ZAP_DOMAIN = "hpc_dynamo"  # rfc.zeromq.org/spec/27
BACKLOG = 4096
LINGER_MS = 1000  # time to deliver the last messages when a socket is closed
# A peer without the key is not asked for it before its first frame is complete. So both are limits
# for every peer: the size of a frame, and the time until a peer has shown its key.
MAX_FRAME_BYTES = 64 << 10
PART_BYTES = MAX_FRAME_BYTES - 1024  # a longer message is sent in parts; encrypting adds bytes
HANDSHAKE_MS = 5000

log = logging.getLogger(__name__)


def new_keys() -> tuple[str, str]:
    """Return a new CURVE key pair, public and private, in Z85."""
    public, private = zmq.curve_keypair()
    return public.decode(), private.decode()


class MessageCodec(Generic[T]):
    """MessagePack encoder and decoder of one tagged union of records."""

    def __init__(self, type_: type[T]) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(type_)

    def encode(self, message: T) -> bytes:
        return self._encoder.encode(message)

    def decode(self, data: bytes) -> T:
        """Raise WireError for bytes that are not a record of the union."""
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, RecursionError) as e:
            hint = "install the same version of hpc-dynamo on all nodes"
            raise WireError(f"a peer sent a message that cannot be decoded: {e}", hint=hint) from e


class _RunKeyOnly:
    """ZAP credentials provider that accepts the run's key only."""

    def __init__(self, public: str) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        del domain
        return key.decode() == self._public


def listening_socket(address: str) -> socket.socket:
    """Return a socket for several servers, one after the other, on one free port.

    Clients that connect while no server runs wait for the next one.
    """
    listening = socket.create_server((address, 0), backlog=BACKLOG)
    listening.setblocking(False)
    return listening


def endpoint_of(listening: socket.socket) -> str:
    """Return the ZMQ endpoint of a listening socket."""
    address, port = listening.getsockname()
    return f"tcp://{address}:{port}"


class ControlServer(Generic[T]):
    """Server on a free port of `address`, or on a socket that listens there already.

    Clients are identified by their ZMQ routing id.
    """

    def __init__(
        self,
        address: str,
        keys: tuple[str, str],
        codec: MessageCodec[T],
        listening: socket.socket | None = None,
        limits: StrangerLimits | None = None,
    ) -> None:
        self._codec, self._context = codec, zmq.asyncio.Context()
        self._auth = AsyncioAuthenticator(self._context)
        self._auth.start()
        self._auth.configure_curve_callback(ZAP_DOMAIN, _RunKeyOnly(keys[0]))
        self._socket = _socket(self._context, zmq.ROUTER, keys)
        self._socket.curve_server = True
        self._socket.zap_domain = ZAP_DOMAIN.encode()
        self._socket.router_mandatory = True
        self.connections = ConnectionLimit(self._socket, limits or StrangerLimits())
        if listening:
            # ZMQ closes the descriptor together with its socket.
            self._socket.set(zmq.USE_FD, os.dup(listening.fileno()))
            self.endpoint = endpoint_of(listening)
            self._socket.bind(self.endpoint)
        else:
            port = self._socket.bind_to_random_port(f"tcp://{address}")
            self.endpoint = f"tcp://{address}:{port}"
        self.connections.port = int(self.endpoint.rpartition(":")[2])

    async def receive(self) -> tuple[bytes, T]:
        """Return the next message of any client, with the id of the client.

        A message that cannot be decoded is logged and dropped: it must not affect other clients.
        """
        while True:
            peer, *frames = await self._socket.recv_multipart(copy=False)
            self.connections.authenticated(peer.get(zmq.SRCFD))
            try:
                return peer.bytes, self._codec.decode(b"".join(f.buffer for f in frames))
            except WireError as e:
                log.error("ignored a message of client %s: %s", peer.bytes.hex(), e)

    async def send(self, peer: bytes, message: T) -> bool:
        """Send a message to a client; return False if it is disconnected."""
        try:
            await self._socket.send_multipart([peer, *_parts(self._codec.encode(message))])
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def close(self) -> None:
        self._socket.close(linger=LINGER_MS)
        self._auth.stop()
        self._context.term()


class ControlClient(Generic[T]):
    """Client of the server at `endpoint`. Reconnects by itself."""

    def __init__(self, endpoint: str, keys: tuple[str, str], codec: MessageCodec[T]) -> None:
        self._codec, self._context = codec, zmq.asyncio.Context()
        self.endpoint = endpoint
        self._socket = _socket(self._context, zmq.DEALER, keys)
        self._socket.curve_serverkey = keys[0].encode()
        self._socket.connect(endpoint)

    async def send(self, message: T) -> None:
        await self._socket.send_multipart(_parts(self._codec.encode(message)))

    async def receive(self, timeout_s: float | None = None) -> T:
        """Return the next message. Raises WireError if there is none within `timeout_s`.

        A message that cannot be decoded is logged and dropped.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    parts = await self._socket.recv_multipart()
                    try:
                        return self._codec.decode(b"".join(parts))
                    except WireError as e:
                        log.error("ignored a message of %s: %s", self.endpoint, e)
        except TimeoutError as e:
            what = f"no message from {self.endpoint} for {timeout_s:.0f} s"
            hint = "check that the node is up and that nodes of a job can reach each other's ports"
            raise WireError(what, hint=hint) from e

    def close(self) -> None:
        self._socket.close(linger=LINGER_MS)
        self._context.term()


def _socket(context: zmq.asyncio.Context, kind: int, keys: tuple[str, str]) -> zmq.asyncio.Socket:
    socket = context.socket(kind)
    socket.maxmsgsize, socket.handshake_ivl = MAX_FRAME_BYTES, HANDSHAKE_MS
    socket.curve_publickey, socket.curve_secretkey = (k.encode() for k in keys)
    return socket


def _parts(content: bytes) -> list[bytes]:
    return [content[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)]
