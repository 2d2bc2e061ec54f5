"""When an engine hangs."""

import pytest

from hpc_dynamo.agent.hang_detector import HangDetector, is_computing
from hpc_dynamo.agent.progress_watch import progress_names
from hpc_dynamo.engines import ENGINES, engine
from hpc_dynamo.process.session import SessionUsage

TIMEOUT_S = 20.0
STARVED = SessionUsage(5.1, stopped=False, waited_s=3.0)
IDLE, STOPPED = SessionUsage(5.0, stopped=False), SessionUsage(9.0, stopped=True)


def wait(detector: HangDetector, seconds: float, *, computing: bool = False) -> None:
    ticks = round(seconds / detector.interval_s)
    for _ in range(ticks):
        detector.on_tick(detector.interval_s, computing=computing)


def test_engine_without_progress_gets_canary_and_then_hangs() -> None:
    detector = HangDetector(TIMEOUT_S)
    seen = []
    for seconds in (7.5, 2.5, 7.5, 2.5):
        wait(detector, seconds)
        seen.append((detector.needs_canary, detector.hung))
    assert seen == [(False, False), (True, False), (True, False), (True, True)]


def test_progress_starts_the_time_again() -> None:
    detector = HangDetector(TIMEOUT_S)
    for _ in range(20):
        wait(detector, 17.5)
        detector.on_progress()
        assert not detector.needs_canary


def test_limit_grows_with_longest_wait_that_ended_well() -> None:
    detector = HangDetector(TIMEOUT_S)
    wait(detector, 17.5)
    detector.on_progress()
    assert detector.limit_s == 10 + 4 * 7.5
    wait(detector, 12.5)
    detector.on_progress()
    assert detector.limit_s == 10 + 4 * 7.5, "it does not shrink"


def test_idle_time_does_not_raise_the_limit() -> None:
    detector = HangDetector(TIMEOUT_S)
    for _ in range(9):
        wait(detector, 10)
        detector.on_progress()
    assert detector.limit_s == TIMEOUT_S


def test_computing_engine_gets_ten_times_as_long() -> None:
    detector = HangDetector(TIMEOUT_S)
    wait(detector, 197.5, computing=True)
    assert not detector.hung
    wait(detector, 2.5, computing=True)
    assert detector.hung


def test_pause_of_the_agent_itself_does_not_count() -> None:
    detector = HangDetector(TIMEOUT_S)
    detector.on_tick(3600.0)
    assert not detector.needs_canary


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (IDLE, IDLE, False),
        (IDLE, SessionUsage(5.1, stopped=False), False),
        (IDLE, SessionUsage(6.0, stopped=False), True),
        (IDLE, STOPPED, False),
        (IDLE, STARVED, True),
        (STARVED, STARVED, False),
        (STARVED, IDLE, False),
        (IDLE, STARVED._replace(stopped=True), False),
        (None, IDLE, True),
        (IDLE, None, True),
    ],
)
def test_engine_computes_if_it_uses_cpu_or_is_unknown(
    before: SessionUsage | None, now: SessionUsage | None, expected: bool
) -> None:
    assert is_computing(before, now, 2.5) is expected


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_counters_of_progress(name: str) -> None:
    names = progress_names(engine(name).metrics)
    assert len(names) >= 3
    assert all(names)
