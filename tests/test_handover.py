"""When a successor is asked for."""

from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.head.handover import LEAST_S, TIMES, lead_s


def test_twice_the_time_that_this_job_took() -> None:
    assert lead_s(400.0, 86_400.0) == TIMES * 400.0
    assert lead_s(3.0, 3_600.0) == LEAST_S, "however quickly it started"
    assert lead_s(3_000.0, 3_600.0) == 1_800.0, "half of a walltime is for serving"


@given(st.floats(0, 1e6), st.floats(60, 1e6))
def test_never_before_half_of_the_walltime(start_s: float, walltime_s: float) -> None:
    assert 0 < lead_s(start_s, walltime_s) <= walltime_s / 2
