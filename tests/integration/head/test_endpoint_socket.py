"""The port of an endpoint, with real sockets of this machine."""

import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hpc_dynamo.config import Config
from hpc_dynamo.errors import EngineError
from hpc_dynamo.head.workloads.endpoint_socket import (
    EndpointSocket,
    KeptPort,
    port_owner,
)
from hpc_dynamo.messages import Endpoint, Outcome
from hpc_dynamo.run import Attempt, Run, Secrets, write_json
from hpc_dynamo.topology import Plan

LOCAL = "127.0.0.1"


def new_attempt(run: Run) -> Attempt:
    run.create(Secrets(token="t", public="p", private="p"))
    return run.new_attempt(Config(), Plan(workers=(), nodes=1, gpus_per_node=0))


@pytest.fixture
def one(tmp_path: Path) -> Attempt:
    return new_attempt(Run(tmp_path / "one"))


@pytest.fixture
def two(tmp_path: Path) -> Attempt:
    return new_attempt(Run(tmp_path / "two"))


@contextmanager
def endpoint_socket(
    host: str, port: int, *, shared: bool, attempt: Attempt
) -> Iterator[EndpointSocket]:
    with KeptPort(host) as kept:
        with EndpointSocket(
            host, port, shared=shared, attempt=attempt, kept=kept.socket
        ) as reserved:
            yield reserved


def refused(host: str, port: int, attempt: Attempt, *, shared: bool) -> EngineError:
    with (
        pytest.raises(EngineError) as caught,
        endpoint_socket(host, port, shared=shared, attempt=attempt),
    ):
        pass
    return caught.value


SAME = [
    (LOCAL, LOCAL),
    ("0.0.0.0", LOCAL),
    (LOCAL, "0.0.0.0"),
    ("0.0.0.0", "0.0.0.0"),
    ("::1", "::1"),
    ("::", "::1"),
    ("::1", "::"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
@pytest.mark.parametrize("shared", [False, True], ids=["one frontend", "several"])
@pytest.mark.parametrize("also_shared", [False, True], ids=["one frontend", "several"])
def test_port_of_another_run_is_refused(
    one: Attempt, two: Attempt, first: str, second: str, shared: bool, also_shared: bool
) -> None:
    """It is refused before the first frontend process starts, and while they listen."""
    with endpoint_socket(first, 0, shared=shared, attempt=one) as reserved:
        error = refused(second, reserved.port, two, shared=also_shared)
        assert (
            f"cannot listen on {second}:{reserved.port} of {socket.gethostname()}" in error.message
        )
        with reserved.open() as opened:
            opened.listen()
            error = refused(second, reserved.port, two, shared=also_shared)
            assert "Address already in use by process" in error.message
            assert "serve.port=0" in error.hint


@pytest.mark.parametrize(("first", "second"), [(LOCAL, "127.0.0.2"), ("::1", LOCAL)])
def test_same_port_on_another_address_is_accepted(
    one: Attempt, two: Attempt, first: str, second: str
) -> None:
    with (
        endpoint_socket(first, 0, shared=True, attempt=one) as reserved,
        endpoint_socket(second, reserved.port, shared=True, attempt=two) as other,
    ):
        assert other.port == reserved.port


SERVER = """
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if "reuseport" in sys.argv:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind((sys.argv[1], int(sys.argv[2])))
s.listen()
print(s.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def server(*words: str, host: str = LOCAL, port: int = 0) -> Iterator[tuple[int, int]]:
    """Run another program; yield its port, 0 if it could not listen, and its process id."""
    argv = [sys.executable, "-c", SERVER, host, str(port), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(argv, **pipes) as process:  # type: ignore[call-overload]
        yield int(process.stdout.readline() or 0), process.pid
        process.stdin.close()


@pytest.mark.parametrize("words", [[], ["reuseport"]], ids=["plain", "as vLLM opens it"])
@pytest.mark.parametrize("host", [LOCAL, "0.0.0.0"])
@pytest.mark.parametrize("shared", [False, True])
def test_error_names_the_process_that_uses_the_port(
    two: Attempt, words: list[str], host: str, shared: bool
) -> None:
    with server(*words, host=host) as (port, pid):
        error = refused(LOCAL, port, two, shared=shared)
        assert f"by process {pid}: {sys.executable} -c" in error.message


@pytest.mark.parametrize("words", [[], ["reuseport"]], ids=["plain", "as vLLM opens it"])
def test_other_program_cannot_share_port_of_one_frontend(one: Attempt, words: list[str]) -> None:
    with (
        endpoint_socket(LOCAL, 0, shared=False, attempt=one) as reserved,
        server(*words, port=reserved.port) as (port, _),
    ):
        assert port == 0


def test_error_names_the_run_that_uses_the_port_and_how_to_stop_it(
    tmp_path: Path, two: Attempt
) -> None:
    run = tmp_path / "it's a run"
    with server(f"{run}/attempts/3", "0") as (port, pid):
        error = refused(LOCAL, port, two, shared=False)
        assert f"by process {pid} of {run}/attempts/3" in error.message
        assert f"""hpc-dynamo stop '{tmp_path}/it'"'"'s a run'""" in error.hint


def test_frontends_of_a_run_share_connections(one: Attempt) -> None:
    with endpoint_socket(LOCAL, 0, shared=True, attempt=one) as reserved, ExitStack() as stack:
        opened = [stack.enter_context(reserved.open()) for _ in range(3)]
        for each in opened:
            each.listen(256)
            each.setblocking(False)
        for _ in range(120):
            stack.enter_context(socket.create_connection((LOCAL, reserved.port)))
        counts = Counter(index for index, each in enumerate(opened) for _ in taken(each, stack))
    assert sum(counts.values()) == 120
    assert min(counts[index] for index in range(3)) > 15


def taken(opened: socket.socket, stack: ExitStack) -> Iterator[socket.socket]:
    while True:
        try:
            yield stack.enter_context(opened.accept()[0])
        except BlockingIOError:
            return


@pytest.mark.parametrize("shared", [False, True])
def test_closed_connections_do_not_block_the_port(one: Attempt, shared: bool) -> None:
    """A run may restart at once, although the kernel keeps closed connections for 60 s."""
    with (
        endpoint_socket(LOCAL, 0, shared=shared, attempt=one) as reserved,
        reserved.open() as opened,
    ):
        opened.listen()
        client = socket.create_connection((LOCAL, reserved.port))
        accepted, _ = opened.accept()
        accepted.close()  # first: TIME_WAIT is on this side
        client.close()
    with (
        endpoint_socket(LOCAL, reserved.port, shared=shared, attempt=one) as again,
        again.open() as opened,
    ):
        opened.listen()
        assert again.port == reserved.port


def endpoint(attempt: Attempt, port: int, host: str = "") -> None:
    record = Endpoint(
        url="", host=host or socket.gethostname(), address=LOCAL, port=port, model="", key_file=""
    )
    write_json(attempt.endpoint_file, record)


def test_next_job_of_a_run_shares_the_port_on_the_same_node(one: Attempt) -> None:
    with endpoint_socket(LOCAL, 0, shared=True, attempt=one) as reserved, reserved.open() as opened:
        opened.listen()
        endpoint(one, reserved.port)
        after = new_attempt(one.run)
        with (
            endpoint_socket(LOCAL, reserved.port, shared=True, attempt=after) as taking,
            taking.open() as also,
        ):
            also.listen()
            assert taking.port == reserved.port


def test_ended_job_or_job_of_another_node_does_not_share_the_port(one: Attempt) -> None:
    after = new_attempt(one.run)
    with server("reuseport") as (port, _):
        endpoint(one, port, "another-node")
        refused(LOCAL, port, after, shared=True)
        endpoint(one, port)
        write_json(one.outcome_file, Outcome(exit_code=0))
        refused(LOCAL, port, after, shared=True)


def test_free_port_has_no_owner() -> None:
    with socket.create_server((LOCAL, 0)) as listening:
        port = listening.getsockname()[1]
        assert port_owner(port)
    assert port_owner(port) == ""


HEAD = """
import os, signal, socket, sys
from pathlib import Path
from hpc_dynamo.head.workloads.endpoint_socket import EndpointSocket
from hpc_dynamo.run import Attempt
kept = socket.socket(fileno=int(sys.argv[2]))
attempt, shared = Attempt(Path(sys.argv[1])), sys.argv[3] == "True"
with EndpointSocket("127.0.0.1", 0, shared=shared, attempt=attempt, kept=kept) as reserved:
    with reserved.open() as opened:
        opened.listen()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("shared", [False, True])
def test_port_stays_reserved_after_the_death_of_a_head(one: Attempt, shared: bool) -> None:
    """Else another user could take it, and with it the keys and the prompts of clients."""
    with KeptPort(LOCAL) as owner:
        kept = owner.socket
        argv = [sys.executable, "-c", HEAD, str(one.path), str(kept.fileno()), str(shared)]
        subprocess.run(argv, pass_fds=[kept.fileno()], check=False)
        port = kept.getsockname()[1]
        assert port
        with server(port=port) as (taken, _):
            assert not taken
        with EndpointSocket(LOCAL, 0, shared=shared, attempt=one, kept=kept) as again:
            assert again.port == port
            with again.open() as opened:
                opened.listen()
                late = EndpointSocket(LOCAL, 0, shared=shared, attempt=one, kept=kept)
                late.close()  # an earlier head that ends after its successor listens
                socket.create_connection((LOCAL, port)).close()
        owner.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOCAL, port))
    with server(port=port) as (taken, _):
        assert taken == port
