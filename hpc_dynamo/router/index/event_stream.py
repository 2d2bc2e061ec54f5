"""Orders the KV events of one worker and detects gaps.

Engines number their batches from 0 and keep the last ones for a replay (vLLM,
vllm/distributed/kv_events.py). Missing batches are requested again. If they are lost for good, all
that is known of the worker is dropped, and indexing starts again from the next batch.
"""

from collections.abc import Callable

from hpc_dynamo.kv.events import REPLAY_END

MAX_OUT_OF_ORDER = 10_000  # batches that wait for a missing one


class EventStream:
    """Calls `apply` with each batch once and in order, and `forget` if batches are lost.

    `receive` returns the number of the batch from which a replay must be requested, else None. The
    creator requests the first replay, from 0, because a subscription may start late.
    """

    def __init__(self, apply: Callable[[bytes], None], forget: Callable[[], None]) -> None:
        self._apply, self._forget = apply, forget
        self._next, self._out_of_order, self._replay_requested = 0, dict[int, bytes](), True
        self.gaps = self.resyncs = 0

    @property
    def started(self) -> bool:
        """Return True after the first event."""
        return self._next > 0

    def receive(self, seq: int, payload: bytes) -> int | None:
        """Process a batch, or the end of a replay. Return the number to replay from, or None."""
        if seq == REPLAY_END:
            return self._on_replay_end()
        if seq == 0 and self._next and not self._replay_requested:
            self._restart()  # the engine restarted without a report
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
            self._resync()  # the requested replay never ended
        if not self._out_of_order or self._replay_requested:
            return None
        self.gaps, self._replay_requested = self.gaps + 1, True
        return self._next

    def _on_replay_end(self) -> int | None:
        """Handle the end of a replay: the engine has sent all batches that it kept."""
        self._replay_requested = False
        if self._out_of_order:
            self._resync()
        return self._request_replay()

    def _resync(self) -> None:
        if self._next:  # batches before the first one were never indexed
            self.resyncs += 1
            self._forget()
        self._next = min(self._out_of_order)
        self._drain()

    def _restart(self) -> None:
        self._forget()
        self._next = 0
        self._out_of_order.clear()
