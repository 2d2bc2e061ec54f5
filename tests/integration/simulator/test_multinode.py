"""A rank over several nodes: real processes, of which node 0 serves once all are there."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.integration.simulator.conftest import KEY, MODEL, Client, Rank, simulator

SIMULATOR = (sys.executable, "-m", "hpc_dynamo.simulator", "--model", MODEL)
END_S = 20.0

Nodes = Callable[[int], tuple[str, ...]]
Join = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def nodes() -> Nodes:
    """Options of node k of three, which meet on a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return lambda k: ("--nnodes", "3", "--node-rank", str(k), "--master-port", str(port))


@contextmanager
def started(*options: str, key: str = KEY) -> Iterator["subprocess.Popen[str]"]:
    env = os.environ | {"HPC_DYNAMO_ENGINE_KEY": key}
    argv = [*SIMULATOR, *options]
    with subprocess.Popen(argv, env=env, text=True, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def join(nodes: Nodes) -> Iterator[Join]:
    with ExitStack() as stack:
        yield lambda k, **words: stack.enter_context(started(*nodes(k), **words))


@pytest.fixture
def whole(nodes: Nodes, join: Join) -> Iterator[tuple[Rank, list["subprocess.Popen[str]"]]]:
    others = [join(1), join(2)]  # who comes early waits
    with simulator(*nodes(0)) as rank:
        yield rank, others


async def test_it_answers_as_a_rank_on_one_node_does(
    whole: tuple[Rank, object], aggregated: Rank, client: Client
) -> None:
    rank, _ = whole
    assert await client.text(rank, "Hello") == await client.text(aggregated, "Hello")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_one_is_gone_all_end(
    whole: tuple[Rank, list["subprocess.Popen[str]"]], number: int
) -> None:
    rank, (one, other) = whole
    one.send_signal(number)
    assert rank.process.wait(END_S) == 1
    assert other.wait(END_S) == 1
    assert other.stderr
    assert "node 0 is gone" in other.stderr.read()


def test_when_node_0_is_told_to_end_all_end(
    whole: tuple[Rank, list["subprocess.Popen[str]"]],
) -> None:
    rank, others = whole
    rank.process.terminate()
    assert rank.process.wait(END_S) == 0
    assert [node.wait(END_S) for node in others] == [1, 1]


def test_nobody_serves_before_all_have_come(nodes: Nodes, join: Join) -> None:
    """One is a stranger: it has another key."""
    join(1)
    join(2, key="another")
    with started(*nodes(0)) as first:
        assert first.stderr
        for line in first.stderr:
            assert "listening" not in line
            if "without the run's key" in line:
                break
        first.terminate()
        assert first.wait(END_S) == 0
        assert "stopping on a signal" in first.stderr.read()


def test_an_unknown_node_is_refused() -> None:
    argv = [*SIMULATOR, "--nnodes", "2", "--node-rank", "2"]
    refused = subprocess.run(argv, capture_output=True, text=True)
    assert refused.returncode == 3
    assert "node-rank: 2 is none of 2 nodes" in refused.stderr
