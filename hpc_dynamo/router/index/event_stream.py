"""One worker's stream of KV events, in order and without holes.

Engines number their batches from 0 and keep the last of them for a replay (vLLM,
vllm/distributed/kv_events.py). What is missing is asked for again; what is gone for good makes
everything known of the worker doubtful, so it is forgotten and learned anew from there on.
"""

from collections.abc import Callable

from hpc_dynamo.kv.events import REPLAY_END

MOST_EARLY = 10_000  # batches that may wait for a missing one


class Feed:
    """`apply` gets each batch once and in order; `forget` is called where some are lost.

    `take` returns the number from which batches must be asked for again, where that is due.
    Whoever made the feed asks for a first replay from 0: who subscribes comes late.
    """

    def __init__(self, apply: Callable[[bytes], None], forget: Callable[[], None]) -> None:
        self._apply, self._forget = apply, forget
        self._next, self._early, self._asked = 0, dict[int, bytes](), True
        self.gaps = self.resyncs = 0

    @property
    def speaks(self) -> bool:
        """Whether anything has come yet."""
        return self._next > 0

    def take(self, seq: int, payload: bytes) -> int | None:
        if seq == REPLAY_END:
            return self._replayed()
        if seq == 0 and self._next and not self._asked:
            self._restart()  # of the engine, which nobody told us of
        if seq >= self._next:
            self._early[seq] = payload
            self._drain()
        return self._complain()

    def _drain(self) -> None:
        while (payload := self._early.pop(self._next, None)) is not None:
            self._next += 1
            self._apply(payload)

    def _complain(self) -> int | None:
        if len(self._early) > MOST_EARLY:
            self._resync()  # the replay that was asked for never ended
        if not self._early or self._asked:
            return None
        self.gaps, self._asked = self.gaps + 1, True
        return self._next

    def _replayed(self) -> int | None:
        """The engine has sent what it still had."""
        self._asked = False
        if self._early:
            self._resync()
        return self._complain()

    def _resync(self) -> None:
        if self._next:  # what came before we listened was never known
            self.resyncs += 1
            self._forget()
        self._next = min(self._early)
        self._drain()

    def _restart(self) -> None:
        self._forget()
        self._next = 0
        self._early.clear()
