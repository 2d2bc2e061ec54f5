"""Sockets for KV events of an engine: PUB for new batches, ROUTER for replays.

Protocol: vLLM's (vllm/distributed/kv_events.py).

    engine (KvEventPublisher)             subscriber (KvEventSubscriber)
      PUB    ── topic, number, payload ──▶ SUB      numbers count from 0
      ROUTER ◀─ empty, first number ────── DEALER   if numbers are missing
      ROUTER ── empty, topic, number, payload ──▶   what the engine still has
      ROUTER ── …, number -1, empty payload ────▶   end of the replay

Numbers have 8 bytes, big-endian. Some versions leave out the topic of a replay. There is no
authentication, so endpoints are ipc sockets in a private folder.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence

import zmq
import zmq.asyncio

from hpc_dynamo.errors import WireError
from hpc_dynamo.kv.events import REPLAY_END

NUMBER_BYTES = 8
RECONNECT_MS = 20  # batches published before the connection are lost

NumberedBatch = tuple[int, bytes]


class KvEventPublisher:
    """Publisher of an engine's KV events. Keeps the last `buffer_steps` payloads for replays.

    Run `serve_replays` as a task. Raises WireError if an endpoint cannot be bound.
    """

    def __init__(
        self, endpoint: str, replay_endpoint: str | None, *, topic: str, buffer_steps: int
    ) -> None:
        self._context, self._topic = zmq.asyncio.Context(), topic.encode()
        self._buffer = deque[NumberedBatch](maxlen=buffer_steps)
        self._next = 0
        self._live = self._context.socket(zmq.PUB)
        self._replays = self._context.socket(zmq.ROUTER)
        # The buffer is the limit. With a high-water mark ROUTER would drop messages.
        self._replays.set(zmq.SNDHWM, 0)
        try:
            self._live.bind(endpoint)
            if replay_endpoint:
                self._replays.bind(replay_endpoint)
        except zmq.ZMQError as e:
            self.close()
            what = f"KV events cannot be published at {endpoint} and {replay_endpoint}: {e}"
            hint = f"an existing folder; ipc:// paths have at most {zmq.IPC_PATH_MAX_LEN} bytes"
            raise WireError(what, hint=hint) from e

    async def publish(self, payload: bytes, *, drop: bool = False) -> None:
        """Publish a payload under the next number. Slow subscribers miss it.

        With `drop` it is only kept for replays, as if all subscribers had missed it.
        """
        number, self._next = self._next, self._next + 1
        self._buffer.append((number, payload))
        if not drop:
            await self._live.send_multipart([self._topic, _encode(number), payload])

    async def serve_replays(self) -> None:
        """Answer replay requests until cancelled."""
        while True:
            peer, *_, start = await self._replays.recv_multipart()
            first = int.from_bytes(start, "big")
            for number, payload in [kept for kept in self._buffer if kept[0] >= first]:
                frames = [peer, b"", self._topic, _encode(number), payload]
                await self._replays.send_multipart(frames)
                # Sending does not suspend this task, so let the engine's tasks run.
                await asyncio.sleep(0)
            await self._replays.send_multipart([peer, b"", b"", _encode(REPLAY_END), b""])

    def close(self) -> None:
        self._context.destroy(linger=0)


class KvEventSubscriber:
    """Subscriber of one engine. It may be created before the engine has bound its endpoints."""

    def __init__(self, endpoint: str, replay_endpoint: str, topic: str = "") -> None:
        self._context, self._replay_endpoint = zmq.asyncio.Context(), replay_endpoint
        self._live = self._context.socket(zmq.SUB)
        self._live.subscribe(topic)
        self._live.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._live.connect(endpoint)

    async def receive(self) -> NumberedBatch:
        """Return the next number and payload. Numbers that were skipped are lost.

        Waits without a deadline. Raises WireError for frames of another protocol.
        """
        return _decode(await self._live.recv_multipart())

    async def replay(self, start: int, timeout_s: float) -> AsyncGenerator[NumberedBatch, None]:
        """Yield the batches from number `start` on that the engine still has.

        Ends after `timeout_s` at the latest. Numbers may be missing at the start, and in a long
        replay also later, since ROUTER drops messages for a slow reader.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        # A socket of its own, so that late answers do not reach the next replay.
        with self._context.socket(zmq.DEALER) as socket:
            socket.set(zmq.RCVHWM, 0)
            socket.set(zmq.LINGER, 0)
            socket.connect(self._replay_endpoint)
            await socket.send_multipart([b"", _encode(start)])
            while loop.time() < deadline:
                try:
                    async with asyncio.timeout_at(deadline):
                        number, payload = _decode(await socket.recv_multipart())
                except TimeoutError:
                    return
                if number == REPLAY_END:
                    return
                yield number, payload

    def close(self) -> None:
        self._context.destroy(linger=0)


def _encode(number: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big", signed=True)


def _decode(frames: Sequence[bytes]) -> NumberedBatch:
    if len(frames) < 2 or len(frames[-2]) != NUMBER_BYTES:
        sizes = ", ".join(str(len(frame)) for frame in frames)
        what = f"received KV events in frames of {sizes} bytes"
        raise WireError(what, hint="vLLM's protocol: topic, number (8 bytes) and payload")
    return int.from_bytes(frames[-2], "big", signed=True), frames[-1]
