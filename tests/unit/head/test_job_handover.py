"""Times of a job handover: submission of the next job, and end of this one."""

import time

import pytest

from hpc_dynamo.head.scaling.job_handover import JobHandover, lead_time_s
from hpc_dynamo.launch.walltime import Walltime
from hpc_dynamo.messages import Outcome, Successor
from hpc_dynamo.run import Attempt

SIGNAL_S = 90.0  # includes 30 s for stopping agents


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    return 1000.0


@pytest.mark.parametrize(("start_s", "lead"), [(0, 60), (10, 60), (30, 60), (31, 62), (600, 1200)])
def test_lead_time_is_twice_the_start_time_or_the_configured_minimum(
    start_s: float, lead: float
) -> None:
    assert lead_time_s(start_s, 60) == lead


@pytest.mark.parametrize(
    ("left_s", "request_s", "last_s"), [(600, 0, 560), (600, 300, 270), (50, 2, 10), (40, 2, 0)]
)
def test_job_with_handover_accepts_requests_for_longer(
    now: float, left_s: float, request_s: float, last_s: float
) -> None:
    walltime = Walltime(now + left_s, SIGNAL_S)
    assert walltime.handover_left_s(request_s) == pytest.approx(last_s)
    assert walltime.handover_left_s(request_s) >= walltime.dispatch_left_s(request_s)


@pytest.mark.parametrize("ends_at", [None, 1000 + 3600.0])
def test_preempted_job_submits_at_once_and_still_accepts_requests(
    now: float, ends_at: float | None
) -> None:
    signalled = Walltime(ends_at, SIGNAL_S).after_signal()
    assert signalled.ends_at == now + SIGNAL_S
    assert signalled.dispatch_left_s(1) <= 0
    assert signalled.handover_left_s(1) == pytest.approx(50)


def test_signal_does_not_extend_the_walltime(now: float) -> None:
    assert Walltime(now + 40, SIGNAL_S).after_signal().ends_at == pytest.approx(now + 40)


@pytest.mark.parametrize(("number", "goes_on"), [(0, 0), (2, 2)])
def test_outcome_names_next_attempt_and_publishes_its_url(
    attempt: Attempt, number: int, goes_on: int
) -> None:
    """The URL is published even if the next job did not answer the last time."""
    url = "http://new:1/v1" if number else ""
    attempt.run.publish_url("http://old:1/v1")
    handover = JobHandover(attempt, lambda: None)
    handover.successor = Successor(attempt=number, job_id="5", detail="slow", url=url)
    outcome = handover.final_outcome(Outcome(exit_code=0, message="drained"))
    assert outcome.next_attempt == goes_on
    assert ("attempt 2 continues" in outcome.message) is bool(number)
    assert attempt.run.url_file.read_text().strip() == (url or "http://old:1/v1")
