"""Silence of peers, with a clock that the test sets."""

from hpc_dynamo.wire.silence import MAX_GAP_S, SilenceWatch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_silence_is_the_time_since_the_last_message() -> None:
    clock = Clock()
    watch = SilenceWatch[str](clock)
    watch.heard("a")
    watch.heard("b")
    for _ in range(5):
        clock.now += 1.0
        watch.heard("b")
        silent = watch.check()
    assert silent == {"a": 5.0, "b": 0.0}
    watch.forget("a")
    assert watch.check() == {"b": 0.0}


def test_own_suspension_does_not_count_as_silence() -> None:
    clock = Clock()
    watch = SilenceWatch[int](clock)
    watch.heard(1)
    for _ in range(4):
        clock.now += 2.0
        watch.check()
    for gap_s in (MAX_GAP_S + 0.1, 45.0, 3600.0):
        clock.now += gap_s
        assert watch.check() == {1: 0.0}, "after a gap of its own everybody gets the full time"
    clock.now += 1.0
    assert watch.check() == {1: 1.0}
