"""KV events from an engine to those who follow it: a PUB socket and a second one for replays.

Protocol: vLLM's (vllm/distributed/kv_events.py). Published are the frames topic, sequence number
(8 bytes, big-endian, from 0) and payload. Who missed some sends an empty frame and a number to
the ROUTER socket and gets what the engine still has from there on, then the number -1; each
answer is an empty frame and the frames above (some versions leave out the topic).
No authentication: for ipc endpoints in a private folder.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence

import zmq
import zmq.asyncio

from hpc_dynamo.errors import WireError
from hpc_dynamo.kv.events import REPLAY_END

NUMBER_BYTES = 8
CONNECT_EVERY_MS = 20  # what is published between bind and connect is lost
Numbered = tuple[int, bytes]


class KvEventPublisher:
    """An engine's end. Keeps the last `buffer_steps` payloads; `serve_replays` is a task.

    Raises WireError where an endpoint cannot be had.
    """

    def __init__(
        self, endpoint: str, replay_endpoint: str | None, *, topic: str, buffer_steps: int
    ) -> None:
        self._context, self._topic = zmq.asyncio.Context(), topic.encode()
        self._buffer = deque[Numbered](maxlen=buffer_steps)
        self._next = 0
        self._live = self._context.socket(zmq.PUB)
        self._replays = self._context.socket(zmq.ROUTER)
        self._replays.set(zmq.SNDHWM, 0)  # the buffer is the bound; beyond it ROUTER would drop
        try:
            self._live.bind(endpoint)
            if replay_endpoint:
                self._replays.bind(replay_endpoint)
        except zmq.ZMQError as e:
            self.close()
            what = f"KV events cannot be published at {endpoint} and {replay_endpoint}: {e}"
            hint = f"a folder that is there, and at most {zmq.IPC_PATH_MAX_LEN} bytes for ipc://"
            raise WireError(what, hint=hint) from e

    async def publish(self, payload: bytes, *, drop: bool = False) -> None:
        """Give it the next number. Waits for nobody: followers that are slow miss it.

        `lost`: nobody gets it but by a replay, as if all had missed it.
        """
        number, self._next = self._next, self._next + 1
        self._buffer.append((number, payload))
        if not drop:
            await self._live.send_multipart([self._topic, _packed(number), payload])

    async def serve_replays(self) -> None:
        """Answer those who missed something, until cancelled."""
        while True:
            peer, *_, start = await self._replays.recv_multipart()
            first = int.from_bytes(start, "big")
            for number, payload in [kept for kept in self._buffer if kept[0] >= first]:
                frames = [peer, b"", self._topic, _packed(number), payload]
                await self._replays.send_multipart(frames)
                await asyncio.sleep(0)  # the engine goes on; sending alone gives nobody a turn
            await self._replays.send_multipart([peer, b"", b"", _packed(REPLAY_END), b""])

    def close(self) -> None:
        self._context.destroy(linger=0)


class KvEventSubscriber:
    """A follower. May be there before the engine is: the sockets connect when that has bound."""

    def __init__(self, endpoint: str, replay_endpoint: str, topic: str = "") -> None:
        self._context, self._replay_endpoint = zmq.asyncio.Context(), replay_endpoint
        self._live = self._context.socket(zmq.SUB)
        self._live.subscribe(topic)
        self._live.set(zmq.RECONNECT_IVL, CONNECT_EVERY_MS)
        self._live.connect(endpoint)

    async def receive(self) -> Numbered:
        """The next (number, payload), whenever that comes; a gap before it was lost.

        Raises WireError for frames of another protocol.
        """
        return _unpacked(await self._live.recv_multipart())

    async def replay(self, start: int, timeout_s: float) -> AsyncGenerator[Numbered, None]:
        """What the engine still has from number `start` on. Ends, at the latest, at the deadline.

        Its beginning may be gone there, and a long one may lose some on its way (ROUTER drops
        what a slow reader has no room for): look at the numbers.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        with self._context.socket(zmq.DEALER) as socket:  # no late answer comes into the next
            socket.set(zmq.RCVHWM, 0)
            socket.set(zmq.LINGER, 0)
            socket.connect(self._replay_endpoint)
            await socket.send_multipart([b"", _packed(start)])
            while loop.time() < deadline:
                try:
                    async with asyncio.timeout_at(deadline):
                        number, payload = _unpacked(await socket.recv_multipart())
                except TimeoutError:
                    return
                if number == REPLAY_END:
                    return
                yield number, payload

    def close(self) -> None:
        self._context.destroy(linger=0)


def _packed(number: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big", signed=True)


def _unpacked(frames: Sequence[bytes]) -> Numbered:
    if len(frames) < 2 or len(frames[-2]) != NUMBER_BYTES:
        sizes = ", ".join(str(len(frame)) for frame in frames)
        what = f"an engine's KV events came in frames of {sizes} bytes"
        raise WireError(what, hint="topic, number (8 bytes) and payload are what vLLM sends")
    return int.from_bytes(frames[-2], "big", signed=True), frames[-1]
