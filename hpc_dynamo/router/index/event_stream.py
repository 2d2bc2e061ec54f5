"""One worker's stream of KV events, in order and without holes.

Engines number their batches from 0 and keep the last of them for a replay (vLLM,
vllm/distributed/kv_events.py). What is missing is asked for again; what is gone for good makes
everything known of the worker doubtful, so it is forgotten and learned anew from there on.
"""

from collections.abc import Callable

from hpc_dynamo.kv.events import REPLAY_END

MAX_OUT_OF_ORDER = 10_000  # batches that may wait for a missing one


class EventStream:
    """`apply` gets each batch once and in order; `forget` is called where some are lost.

    `take` returns the number from which batches must be asked for again, where that is due.
    Whoever made the feed asks for a first replay from 0: who subscribes comes late.
    """

    def __init__(self, apply: Callable[[bytes], None], forget: Callable[[], None]) -> None:
        self._apply, self._forget = apply, forget
        self._next, self._out_of_order, self._replay_requested = 0, dict[int, bytes](), True
        self.gaps = self.resyncs = 0

    @property
    def started(self) -> bool:
        """Whether anything has come yet."""
        return self._next > 0

    def receive(self, seq: int, payload: bytes) -> int | None:
        if seq == REPLAY_END:
            return self._on_replay_end()
        if seq == 0 and self._next and not self._replay_requested:
            self._restart()  # of the engine, which nobody told us of
        if seq >= self._next:
            self._out_of_order[seq] = payload
            self._drain()
        return self._request_replay()

    def _drain(self) -> None:
        while (payload := self._out_of_order.pop(self._next, None)) is not None:
            self._next += 1
            self._apply(payload)

    def _request_replay(self) -> int | None:
        if len(self._out_of_order) > MAX_OUT_OF_ORDER:
            self._resync()  # the replay that was asked for never ended
        if not self._out_of_order or self._replay_requested:
            return None
        self.gaps, self._replay_requested = self.gaps + 1, True
        return self._next

    def _on_replay_end(self) -> int | None:
        """The engine has sent what it still had."""
        self._replay_requested = False
        if self._out_of_order:
            self._resync()
        return self._request_replay()

    def _resync(self) -> None:
        if self._next:  # what came before we listened was never known
            self.resyncs += 1
            self._forget()
        self._next = min(self._out_of_order)
        self._drain()

    def _restart(self) -> None:
        self._forget()
        self._next = 0
        self._out_of_order.clear()
