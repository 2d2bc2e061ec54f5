"""When a job must begin to end."""

import math
import time

import pytest

from hpc_dynamo.launch.walltime import RequestDurations, Walltime

SIGNAL_S = 90.0  # the last 30 s are reserved for the shutdown


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    return 1000.0


def test_job_without_end_has_infinite_time() -> None:
    walltime = Walltime(None, SIGNAL_S)
    assert walltime.dispatch_left_s(1e9) == walltime.time_left_s == math.inf
    assert not walltime.signal_was_early(0)
    assert walltime.left_after_signal_s() == 60


@pytest.mark.parametrize(
    ("left_s", "likely_s", "spare_s"),
    [(600, 0, 510), (600, 300, 270), (100, 0, 10), (90, 0, 0), (50, 0, -40), (600, 600, -30)],
)
def test_no_request_starts_that_would_not_finish(
    now: float, left_s: float, likely_s: float, spare_s: float
) -> None:
    assert Walltime(now + left_s, SIGNAL_S).dispatch_left_s(likely_s) == pytest.approx(spare_s)


@pytest.mark.parametrize(
    ("left_s", "early"), [(600, False), (151, False), (149, True), (91, True), (89, False)]
)
def test_early_signal_is_ignored_in_favor_of_clock(now: float, left_s: float, early: bool) -> None:
    assert Walltime(now + left_s, SIGNAL_S).signal_was_early(0) is early


def test_preempted_job_has_time_after_signal(now: float) -> None:
    assert Walltime(now + 3600, SIGNAL_S).left_after_signal_s() == 60
    assert Walltime(now + 45, SIGNAL_S).left_after_signal_s() == 15


def test_durations_report_95th_percentile() -> None:
    durations = RequestDurations()
    assert durations.p95_s == 0
    for seconds in range(100):
        durations.add(seconds)
    assert durations.p95_s == 95
    for _ in range(1000):
        durations.add(1)
    assert durations.p95_s == 1, "what is long ago counts"
