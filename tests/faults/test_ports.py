"""A second endpoint on the same port of one user is rejected."""

from pathlib import Path

import pytest

from tests.integration.serving.served import serving
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import SIMULATOR, hpc_dynamo

pytestmark = pytest.mark.slow


def test_port_in_use_is_rejected(tmp_path: Path, fault: FaultRecorder) -> None:
    with serving(tmp_path, "topology=aggregated") as served:
        endpoint = served.attempt.endpoint()
        assert endpoint
        port = f"serve.port={endpoint.port}"
        two = ("model.name=other", "name=two", "serve.frontend_processes=2", port)
        second = ("serve", *SIMULATOR, "topology=aggregated", *two)
        route = ("route", "--workers", "http://127.0.0.1:9", "engine=simulator", "name=r", port)
        row = fault("second endpoint on a port in use", "refused; the first continues")
        for words in (second, route):
            done = hpc_dynamo(*words, cwd=tmp_path)
            assert done.returncode == 1, done.stdout + done.stderr
            assert f"cannot listen on 127.0.0.1:{endpoint.port}" in done.stderr
            assert f"of {served.attempt.path}" in done.stderr
            assert f"hpc-dynamo stop {served.attempt.run.path}" in done.stderr
        answers = [served.ask("GET", "/v1/models") for _ in range(20)]
        row.requests(len(answers), sum(answer.status != 200 for answer in answers))
        assert {answer.status for answer in answers} == {200}
