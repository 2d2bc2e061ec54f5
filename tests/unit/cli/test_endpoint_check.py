"""A key is sent to an endpoint only if its run still has the port."""

import socket
from pathlib import Path

import pytest

from hpc_dynamo.cli import endpoint_check
from hpc_dynamo.cli.endpoint_check import require_live_endpoint
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.launch import JobState
from hpc_dynamo.messages import Endpoint
from hpc_dynamo.process import listeners
from tests.support.terminal import new_run

HERE = "127.0.0.1"


def endpoint(port: int, host: str = "") -> Endpoint:
    return Endpoint(
        url=f"http://{HERE}:{port}/v1",
        host=host or socket.gethostname(),
        address=HERE,
        port=port,
        model="m",
        key_file="",
    )


def test_port_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    attempt = new_run(tmp_path / "run")
    with socket.create_server((HERE, 0)) as server:
        port = server.getsockname()[1]
        require_live_endpoint(attempt, endpoint(port))
        row = f" 0: 0100007F:{port:04X} 00000000:0000 0A 0:0 00:0 0 4711 0 77 1"
        (tmp_path / "tcp").write_text(f"header\n{row}\n")
        with monkeypatch.context() as patch:
            patch.setattr(listeners, "TABLES", (tmp_path / "tcp",))
            with pytest.raises(HpcDynamoError, match=f"user 4711 listens on port {port}"):
                require_live_endpoint(attempt, endpoint(port))
    with pytest.raises(HpcDynamoError, match="no process listens"):
        require_live_endpoint(attempt, endpoint(port))


class Job:
    """A job in a given state."""

    def __init__(self, state: JobState) -> None:
        self._state = state

    def state(self) -> tuple[JobState, str]:
        return self._state, "detail"


@pytest.mark.parametrize("state", list(JobState))
def test_endpoint_of_another_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: JobState
) -> None:
    attempt = new_run(tmp_path / "run")
    monkeypatch.setattr(endpoint_check, "find_job", lambda attempt: Job(state))
    if state in (JobState.running, JobState.unknown):
        require_live_endpoint(attempt, endpoint(1, "n7"))
        return
    with pytest.raises(HpcDynamoError, match=f"its job is {state}"):
        require_live_endpoint(attempt, endpoint(1, "n7"))
