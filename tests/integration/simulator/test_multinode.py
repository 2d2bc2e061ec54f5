"""A rank that spans nodes: real processes, of which node 0 serves once all are connected."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.simulator import KEY, MODEL, Client, Rank, simulator

SIMULATOR = (sys.executable, "-m", "hpc_dynamo.simulator", "--model", MODEL)
END_S = 60.0

Nodes = Callable[[int], tuple[str, ...]]
Join = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def nodes() -> Nodes:
    """Return a function for the options of node k of three, with a free port."""
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
    others = [join(1), join(2)]  # they wait for node 0
    with simulator(*nodes(0)) as rank:
        yield rank, others


async def test_multi_node_rank_gives_output_of_single_node(
    whole: tuple[Rank, object], aggregated: Rank, client: Client
) -> None:
    rank, _ = whole
    assert await client.text(rank, "Hello") == await client.text(aggregated, "Hello")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_all_nodes_exit_when_one_is_lost(
    whole: tuple[Rank, list["subprocess.Popen[str]"]], number: int
) -> None:
    rank, (one, other) = whole
    one.send_signal(number)
    assert rank.process.wait(END_S) == 1
    assert other.wait(END_S) == 1
    assert other.stderr
    assert "node 0 is gone" in other.stderr.read()


def test_all_nodes_exit_when_node_0_is_stopped(
    whole: tuple[Rank, list["subprocess.Popen[str]"]],
) -> None:
    rank, others = whole
    rank.process.terminate()
    assert rank.process.wait(END_S) == 0
    assert [node.wait(END_S) for node in others] == [1, 1]


def test_node_0_does_not_serve_before_all_nodes_connect(nodes: Nodes, join: Join) -> None:
    """One of the other nodes has another key."""
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


def test_invalid_node_rank_is_rejected() -> None:
    argv = [*SIMULATOR, "--nnodes", "2", "--node-rank", "2"]
    refused = subprocess.run(argv, capture_output=True, text=True)
    assert refused.returncode == 3
    assert "node-rank: 2 is none of 2 nodes" in refused.stderr
