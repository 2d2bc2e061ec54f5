"""Probes of a run while `hpc-dynamo chaos` injects faults."""

import time

from hpc_dynamo.cli.chaos.batch_probe import FAILED, BatchProbe
from hpc_dynamo.cli.chaos.client_probe import ClientProbe
from hpc_dynamo.cli.chat.client import ChatClient
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.messages import Progress, Status
from hpc_dynamo.run import Attempt, write_json
from tests.support.runs import until


def write_progress(attempt: Attempt, done: int, failed: int = 0) -> None:
    progress = Progress(total=20, done=done, failed=failed)
    write_json(attempt.status_file, Status(phase="running", at=time.time(), progress=progress))


def test_batch_probe_counts_what_finishes_meanwhile(attempt: Attempt) -> None:
    write_progress(attempt, done=4, failed=1)
    with BatchProbe(attempt) as probe:
        began = time.monotonic()
        assert probe.answered_after(began) is None
        write_progress(attempt, done=7, failed=2)
        until("four results", lambda: len(probe.results) == 4)
    answered = probe.answered_after(began)
    assert answered is not None
    assert answered > began
    assert [result.error for result in probe.results if result.error] == [FAILED]
    assert probe.answered_after(time.monotonic()) is None
    assert probe.unanswered == 0


def test_batch_probe_of_a_restarted_head_counts_no_result_twice(attempt: Attempt) -> None:
    write_progress(attempt, done=9)
    probe = BatchProbe(attempt)
    for done in (2, 5):  # a new head counts from the results that it has read
        write_progress(attempt, done=done)
        probe._step()
    assert len(probe.results) == 3


def test_client_probe_counts_requests_without_endpoint_as_lost() -> None:
    def client() -> ChatClient:
        raise HpcDynamoError("the run has no endpoint now\nmore lines")

    with ClientProbe(client, "m", 0.01) as probe:
        until("two results", lambda: len(probe.results) >= 2)
    probe.wait(10)
    assert probe.unanswered == 0
    assert {result.error for result in probe.results} == {"the run has no endpoint now"}
    assert probe.answered_after(0) is None
