"""Event streams apply each batch once and in order, with any losses."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.kv.events import REPLAY_END
from hpc_dynamo.router.index.event_stream import MAX_OUT_OF_ORDER, EventStream


class Listener:
    """Records the batches that a stream applied since its last reset."""

    def __init__(self) -> None:
        self.applied = list[int]()
        self.feed = EventStream(
            lambda payload: self.applied.append(int(payload)), self.applied.clear
        )

    def take(self, *seqs: int) -> list[int | None]:
        return [self.feed.receive(seq, b"" if seq == REPLAY_END else b"%d" % seq) for seq in seqs]


def counts(*seqs: int) -> Listener:
    """Return a listener after its first replay."""
    listener = Listener()
    assert listener.take(*seqs, REPLAY_END)[-1] is None
    return listener


def test_stream_after_first_replay_applies_batches_in_order() -> None:
    listener = counts(0, 1)
    assert listener.take(2, 3) == [None, None]
    assert listener.applied == [0, 1, 2, 3]
    assert (listener.feed.gaps, listener.feed.resyncs) == (0, 0)


def test_live_batches_are_applied_once_after_the_replay() -> None:
    listener = Listener()
    assert listener.take(3, 0, 1, 2, 3, 4, REPLAY_END, 4) == [None] * 8
    assert listener.applied == [0, 1, 2, 3, 4]


def test_late_subscription_starts_at_the_oldest_kept_batch() -> None:
    listener = Listener()
    listener.take(7, 8, REPLAY_END)
    assert listener.applied == [7, 8]
    assert listener.feed.resyncs == 0


def test_gap_is_requested_once_and_filled_by_the_replay() -> None:
    listener = counts(0)
    assert listener.take(3, 4) == [1, None]
    assert listener.applied == [0]
    assert listener.take(1, 2, 3, 4, REPLAY_END) == [None] * 5
    assert listener.applied == [0, 1, 2, 3, 4]
    assert (listener.feed.gaps, listener.feed.resyncs) == (1, 0)


def test_permanent_gap_drops_all_earlier_blocks() -> None:
    listener = counts(0, 1)
    listener.take(5, 6)
    listener.take(6, REPLAY_END)
    assert listener.applied == [5, 6]
    assert (listener.feed.gaps, listener.feed.resyncs) == (1, 1)


def test_gap_in_a_replay_is_requested_again() -> None:
    listener = counts(0)
    assert listener.take(2, 5, 3) == [1, None, None]
    assert listener.take(REPLAY_END) == [4]  # resynced at 2 and 3, and 4 is still missing
    assert listener.applied == [2, 3]
    listener.take(4, REPLAY_END)
    assert listener.applied == [2, 3, 4, 5]


def test_batch_zero_from_a_restarted_engine_resets_the_stream() -> None:
    listener = counts(0, 1, 2)
    assert listener.take(0, 1) == [None, None]
    assert listener.applied == [0, 1]


def test_endless_replay_buffers_a_limited_number_of_batches() -> None:
    listener = counts(0)
    listener.take(*range(2, MAX_OUT_OF_ORDER + 3))
    assert listener.applied == list(range(2, MAX_OUT_OF_ORDER + 3))


LOSSES = st.lists(st.booleans(), min_size=1, max_size=40)


@given(LOSSES, LOSSES, st.integers(0, 12))
def test_any_losses_apply_a_suffix_of_the_stream(
    lost: list[bool], lost_in_replays: list[bool], kept: int
) -> None:
    """Live and replayed batches get lost, ends of replays do not; the engine keeps some batches."""
    listener, buffer, fates = Listener(), deque[int](maxlen=kept + 1), deque(lost_in_replays)

    def replay(start: int | None) -> None:
        while start is not None:
            for seq in [seq for seq in buffer if seq >= start]:
                if not (fates and fates.popleft()):
                    listener.take(seq)
            (start,) = listener.take(REPLAY_END)

    replay(0)
    for seq, gone in enumerate(lost):
        buffer.append(seq)
        if not gone:
            replay(*listener.take(seq))
    buffer.append(len(lost))
    replay(*listener.take(len(lost)))
    first = listener.applied[0]
    assert listener.applied == list(range(first, len(lost) + 1))
