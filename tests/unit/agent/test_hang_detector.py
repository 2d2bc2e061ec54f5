"""When an engine hangs."""

import pytest

from hpc_dynamo.agent.hang_detector import HangDetector, is_computing
from hpc_dynamo.agent.progress_watch import progress_names
from hpc_dynamo.engines import ENGINES, engine
from hpc_dynamo.process.session import NO_PROCESSES, SessionUsage, ThreadTimes

TIMEOUT_S = 20.0
BEFORE = SessionUsage(5.0, stopped=False)
IDLE = BEFORE._replace(at_s=2.5)


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
        (BEFORE, IDLE, False),
        (BEFORE, IDLE._replace(cpu_s=5.1), False),
        (BEFORE, IDLE._replace(cpu_s=6.0), True),
        (BEFORE, IDLE._replace(cpu_s=9.0, stopped=True), False),
        (BEFORE, IDLE._replace(children_s=0.1), True),
        (BEFORE, IDLE._replace(children_s=0.1, stopped=True), False),
        (IDLE._replace(children_s=1.0), NO_PROCESSES, False),
        (None, IDLE, True),
        (IDLE, None, True),
    ],
)
def test_engine_computes_if_it_uses_cpu_or_is_unknown(
    before: SessionUsage | None, now: SessionUsage | None, expected: bool
) -> None:
    assert is_computing(before, now) is expected


# Seconds of 2.5 that the busiest threads of vLLM ran and waited for a CPU, at a load average of
# 20 on two CPUs. The prefill worker was in one step of its model for 87 s.
PREFILL = (
    ((0.42, 2.20), (0.04, 0.05), (0.03, 0.0), (0.01, 0.28)),
    ((0.38, 2.03), (0.04, 0.05), (0.02, 0.0), (0.01, 0.18)),
    ((0.29, 2.23), (0.04, 0.05), (0.02, 0.0), (0.01, 0.15)),
    ((0.33, 2.13), (0.03, 0.10), (0.02, 0.0), (0.01, 0.00)),
)
# An idle decode worker, whose threads wake often. The last row is of NIXL's thread.
IDLE_DECODE = (
    ((0.03, 0.08), (0.03, 0.13), (0.01, 0.05), (0.00, 0.08)),
    ((0.07, 0.18), (0.02, 0.10), (0.02, 0.00), (0.01, 0.03)),
    ((0.03, 1.68), (0.03, 0.00), (0.01, 0.33), (0.01, 0.13)),
)


def usage(*threads: tuple[float, float]) -> SessionUsage:
    times = {tid: ThreadTimes(*each) for tid, each in enumerate(threads)}
    return SessionUsage(sum(each.ran_s for each in times.values()), stopped=False, threads=times)


def after(seconds: float, usage: SessionUsage) -> SessionUsage:
    return usage._replace(at_s=seconds)


@pytest.mark.parametrize(
    ("threads", "expected"),
    [*((each, True) for each in PREFILL), *((each, False) for each in IDLE_DECODE)],
)
def test_recorded_engines_on_an_overloaded_machine(
    threads: tuple[tuple[float, float], ...], *, expected: bool
) -> None:
    before, now = usage(*[(0.0, 0.0)] * len(threads)), after(2.5, usage(*threads))
    assert is_computing(before, now) is expected
    assert not is_computing(before, now._replace(stopped=True))


def test_child_that_compiles_counts_from_its_start() -> None:
    """Recorded while a thread of vLLM waits for a compiler, at a load average of 30."""
    waits, child = (0.0, 0.0), (0.23, 1.01)
    assert is_computing(usage(waits), after(1.32, usage(waits, child)))
    assert is_computing(usage(waits, child), after(1.28, usage(waits, (0.47, 2.06))))
    assert not is_computing(usage(waits, child), after(1.28, usage(waits)))


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_counters_of_progress(name: str) -> None:
    names = progress_names(engine(name).metrics)
    assert len(names) >= 3
    assert all(names)
