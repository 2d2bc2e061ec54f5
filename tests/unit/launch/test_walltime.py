"""When a job must begin to end."""

import math
import time

import pytest

from hpc_dynamo.launch.walltime import RequestDurations, Walltime

SIGNAL_S = 90.0  # the last third of it, 30 s, is kept for the end of the agents


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    return 1000.0


def test_a_job_without_an_end_has_time_for_ever() -> None:
    walltime = Walltime(None, SIGNAL_S)
    assert walltime.dispatch_left_s(1e9) == walltime.time_left_s == math.inf
    assert not walltime.signal_was_early(0)
    assert walltime.left_after_signal_s() == 60


@pytest.mark.parametrize(
    ("left_s", "likely_s", "spare_s"),
    [(600, 0, 510), (600, 300, 270), (100, 0, 10), (90, 0, 0), (50, 0, -40), (600, 600, -30)],
)
def test_nothing_begins_that_would_not_end(
    now: float, left_s: float, likely_s: float, spare_s: float
) -> None:
    assert Walltime(now + left_s, SIGNAL_S).dispatch_left_s(likely_s) == pytest.approx(spare_s)


@pytest.mark.parametrize(
    ("left_s", "early"), [(600, False), (151, False), (149, True), (91, True), (89, False)]
)
def test_a_signal_just_before_its_time_is_left_to_the_clock(
    now: float, left_s: float, early: bool
) -> None:
    assert Walltime(now + left_s, SIGNAL_S).signal_was_early(0) is early


def test_a_preempted_job_has_what_the_signal_leaves(now: float) -> None:
    assert Walltime(now + 3600, SIGNAL_S).left_after_signal_s() == 60
    assert Walltime(now + 45, SIGNAL_S).left_after_signal_s() == 15


def test_durations_tell_what_is_hardly_exceeded() -> None:
    durations = RequestDurations()
    assert durations.p95_s == 0
    for seconds in range(100):
        durations.add(seconds)
    assert durations.p95_s == 95
    for _ in range(1000):
        durations.add(1)
    assert durations.p95_s == 1, "what is long ago counts"
