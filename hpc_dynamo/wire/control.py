"""The control plane's sockets: ZMQ with CURVE, records by a codec passed in.

One `Server` (ROUTER) on the head node, one `Client` (DEALER) an agent. All processes of a
run hold the same key pair from the run folder; the server admits that key alone. Every wait
has a deadline. Protocol: ZMTP 3.1 with CURVE (rfc.zeromq.org/spec/26), one frame a record.
"""

import asyncio
from typing import Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from hpc_dynamo.errors import WireError

T = TypeVar("T")

DOMAIN = "hpc_dynamo"  # of ZAP (rfc.zeromq.org/spec/27); one for all
LINGER_MS = 1000  # what was sent last may still leave when a socket is closed


def new_keys() -> tuple[str, str]:
    """A fresh CURVE pair, public and private, in Z85."""
    public, private = zmq.curve_keypair()
    return public.decode(), private.decode()


class MessageCodec(Generic[T]):
    """MessagePack of one tagged union of records."""

    def __init__(self, type_: type[T]) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(type_)

    def encode(self, message: T) -> bytes:
        return self._encoder.encode(message)

    def decode(self, data: bytes) -> T:
        """Raises WireError for bytes that are no record of the union."""
        try:
            return self._decoder.decode(data)
        except msgspec.DecodeError as e:
            hint = "all nodes need the same version of hpc-dynamo"
            raise WireError(f"a peer sent something unreadable: {e}", hint=hint) from e


class _OnlyOurKey:
    """Credentials provider of ZAP: the run's own key and no other."""

    def __init__(self, public: str) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        del domain  # one domain only
        return key.decode() == self._public


class ControlServer(Generic[T]):
    """Bound to a free port of `address`; hears from all clients, answers each by its id."""

    def __init__(self, address: str, keys: tuple[str, str], codec: MessageCodec[T]) -> None:
        self._codec, self._context = codec, zmq.asyncio.Context()
        self._auth = AsyncioAuthenticator(self._context)
        self._auth.start()
        self._auth.configure_curve_callback(DOMAIN, _OnlyOurKey(keys[0]))
        self._socket = _socket(self._context, zmq.ROUTER, keys)
        self._socket.curve_server = True
        self._socket.zap_domain = DOMAIN.encode()
        self._socket.router_mandatory = True
        port = self._socket.bind_to_random_port(f"tcp://{address}")
        self.endpoint = f"tcp://{address}:{port}"

    async def receive(self) -> tuple[bytes, T]:
        """The next message of any client, with the id to answer to."""
        peer, data = await self._socket.recv_multipart()
        return peer, self._codec.decode(data)

    async def send(self, peer: bytes, message: T) -> bool:
        """False where that client is gone; nobody waits for an answer that cannot come."""
        try:
            await self._socket.send_multipart([peer, self._codec.encode(message)])
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
    """Connected to the server at `endpoint`; reconnects by itself."""

    def __init__(self, endpoint: str, keys: tuple[str, str], codec: MessageCodec[T]) -> None:
        self._codec, self._context = codec, zmq.asyncio.Context()
        self.endpoint = endpoint
        self._socket = _socket(self._context, zmq.DEALER, keys)
        self._socket.curve_serverkey = keys[0].encode()
        self._socket.connect(endpoint)

    async def send(self, message: T) -> None:
        await self._socket.send(self._codec.encode(message))

    async def receive(self, timeout_s: float) -> T:
        """The next message. Raises WireError after `timeout_s` of silence."""
        try:
            async with asyncio.timeout(timeout_s):
                return self._codec.decode(await self._socket.recv())
        except TimeoutError as e:
            what = f"{self.endpoint} was silent for {timeout_s:.0f} s"
            hint = "is that node up, and may the nodes of a job reach each other's ports?"
            raise WireError(what, hint=hint) from e

    def close(self) -> None:
        self._socket.close(linger=LINGER_MS)
        self._context.term()


def _socket(context: zmq.asyncio.Context, kind: int, keys: tuple[str, str]) -> zmq.asyncio.Socket:
    socket = context.socket(kind)
    socket.curve_publickey, socket.curve_secretkey = (k.encode() for k in keys)
    return socket
