"""When a successor is asked for, and until when the job before it takes requests."""

import time

import pytest

from hpc_dynamo.head.scaling.job_handover import JobHandover, lead_time_s
from hpc_dynamo.launch.walltime import Walltime
from hpc_dynamo.messages import Outcome, Successor
from hpc_dynamo.run import Attempt

SIGNAL_S = 90.0  # the last third of it, 30 s, is kept for the end of the agents


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    return 1000.0


@pytest.mark.parametrize(("took_s", "lead"), [(0, 60), (10, 60), (30, 60), (31, 62), (600, 1200)])
def test_twice_what_this_job_took_but_never_less_than_asked_for(took_s: float, lead: float) -> None:
    assert lead_time_s(took_s, 60) == lead


@pytest.mark.parametrize(
    ("left_s", "likely_s", "last_s"), [(600, 0, 560), (600, 300, 270), (50, 2, 10), (40, 2, 0)]
)
def test_who_hands_over_takes_requests_for_longer(
    now: float, left_s: float, likely_s: float, last_s: float
) -> None:
    walltime = Walltime(now + left_s, SIGNAL_S)
    assert walltime.handover_left_s(likely_s) == pytest.approx(last_s)
    assert walltime.handover_left_s(likely_s) >= walltime.dispatch_left_s(likely_s)


@pytest.mark.parametrize("ends_at", [None, 1000 + 3600.0])
def test_a_preempted_job_asks_at_once_and_still_takes_requests(
    now: float, ends_at: float | None
) -> None:
    warned = Walltime(ends_at, SIGNAL_S).after_signal()
    assert warned.ends_at == now + SIGNAL_S
    assert warned.dispatch_left_s(1) <= 0
    assert warned.handover_left_s(1) == pytest.approx(50)


def test_a_warning_gives_no_time_that_is_not_there(now: float) -> None:
    assert Walltime(now + 40, SIGNAL_S).after_signal().ends_at == pytest.approx(now + 40)


@pytest.mark.parametrize(("number", "goes_on"), [(0, 0), (2, 2)])
def test_the_outcome_names_who_goes_on_and_clients_look_there(
    attempt: Attempt, number: int, goes_on: int
) -> None:
    """Also where the successor did not answer when it was last asked."""
    url = "http://new:1/v1" if number else ""
    attempt.run.publish_url("http://old:1/v1")
    handover = JobHandover(attempt, lambda: None)
    handover.successor = Successor(attempt=number, job_id="5", detail="slow", url=url)
    outcome = handover.final_outcome(Outcome(exit_code=0, message="drained"))
    assert outcome.next_attempt == goes_on
    assert ("attempt 2 continues" in outcome.message) is bool(number)
    assert attempt.run.url_file.read_text().strip() == (url or "http://old:1/v1")
