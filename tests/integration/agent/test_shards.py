"""Multi-node workers: messages between their shards, and shards that exit."""

import os
import re
import signal
from collections.abc import Awaitable
from pathlib import Path

import pytest
from msgspec.structs import replace

from hpc_dynamo.config import Role
from hpc_dynamo.head.membership.shards import MultiNodeCoordinator
from hpc_dynamo.messages import ControlMessage, ShardExited, StartShard, StopShard
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Shard, Worker
from tests.support.runs import (
    SIMULATOR,
    answers,
    each_once,
    hpc_dynamo,
    latest,
    until,
    write_prompts,
)

pytestmark = pytest.mark.slow

# Each node pretends to have one GPU, so that a worker of two takes two agents.
TWO_SHARDS = (
    *SIMULATOR,
    *("engine.device=cuda", "cluster.gpus_per_node=1", "cluster.preflight=false"),
    *("topology=aggregated", "topology.aggregated.tensor_parallel=2", "input=prompts.jsonl"),
)
SLOW = ("engine.args.time-scale=20", "batch.concurrency=4")


# Messages that the head passes on

WORKER = Worker(3, Role.decode, (Shard(4, (0,)), Shard(5, (0,)), Shard(6, (0,))))
START = StartShard(rank=3, role=Role.decode, incarnation=1, address="10.0.0.4", ports=(5000, 5001))
EXITED = ShardExited(rank=3, incarnation=1, detail="shard 2 of 3 was killed")


class Sent(list[tuple[int, ControlMessage]]):
    """Messages sent, in order, each with its node."""

    def __call__(self, node: int, message: ControlMessage) -> Awaitable[None]:
        self.append((node, message))
        return nothing()


async def nothing() -> None:
    pass


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
async def coordinator(sent: Sent) -> MultiNodeCoordinator:
    """Coordinator of a worker that has started."""
    coordinator = MultiNodeCoordinator(sent)
    await coordinator.on_message(WORKER, START)
    return coordinator


async def test_start_is_sent_to_the_nodes_of_the_other_shards(
    coordinator: MultiNodeCoordinator, sent: Sent
) -> None:
    assert sent == [(5, START), (6, START)]


async def test_node_that_joins_late_receives_the_start(
    coordinator: MultiNodeCoordinator, sent: Sent
) -> None:
    sent.clear()
    await coordinator.node_joined(6)
    await coordinator.node_joined(4)
    await coordinator.node_joined(7)
    assert sent == [(6, START)]


async def test_exit_of_a_shard_is_sent_to_the_first_shard(
    coordinator: MultiNodeCoordinator, sent: Sent
) -> None:
    sent.clear()
    await coordinator.on_message(WORKER, EXITED)
    assert sent == [(4, EXITED)]


async def test_other_shards_are_stopped_once_when_the_first_has_ended(
    coordinator: MultiNodeCoordinator, sent: Sent
) -> None:
    sent.clear()
    await coordinator.stop_worker(3)
    await coordinator.stop_worker(3)
    assert sent == [(5, StopShard(rank=3)), (6, StopShard(rank=3))]
    sent.clear()
    await coordinator.on_message(WORKER, EXITED)
    await coordinator.node_joined(5)
    await coordinator.node_lost(6, "silent", for_good=True)
    assert sent == [], "the worker has ended"


async def test_lost_node_ends_this_start_and_later_ones(
    coordinator: MultiNodeCoordinator, sent: Sent
) -> None:
    sent.clear()
    await coordinator.node_lost(6, "node 6 (n6) is gone: silent for 4 s", for_good=True)
    ((node, died),) = sent
    assert node == 4
    assert isinstance(died, ShardExited)
    assert died.incarnation == 1
    reason = "node 6 (n6) is gone: silent for 4 s"
    assert died.detail == f"a shard of worker 3 (decode) is lost: {reason}"
    sent.clear()
    await coordinator.on_message(WORKER, again := replace(START, incarnation=2))
    assert (5, again) in sent
    assert [m.incarnation for n, m in sent if n == 4 and isinstance(m, ShardExited)] == [2]


async def test_start_waits_for_a_node_that_is_only_silent(
    coordinator: MultiNodeCoordinator, sent: Sent
) -> None:
    """Otherwise the leader would use up its restarts before the node returns."""
    await coordinator.node_lost(6, "silent", for_good=False)
    sent.clear()
    await coordinator.on_message(WORKER, again := replace(START, incarnation=2))
    assert sent == [(5, again), (6, again)]
    sent.clear()
    await coordinator.node_joined(6)
    assert sent == [(6, again)]
    sent.clear()
    await coordinator.node_lost(6, "its connection is closed", for_good=True)
    assert [m.incarnation for _, m in sent if isinstance(m, ShardExited)] == [2]


async def test_lost_node_without_shards_has_no_effect(
    coordinator: MultiNodeCoordinator, sent: Sent
) -> None:
    sent.clear()
    await coordinator.node_lost(7, "silent", for_good=True)
    assert sent == []


# Two agents on this machine


def test_worker_of_two_shards_finishes_a_batch(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 20)
    done = hpc_dynamo("batch", *TWO_SHARDS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/prompts"
    assert list(answers(run / "output.jsonl")) == ids
    attempt = latest(run)
    assert attempt.plan().nodes == 2
    assert "node 1 connected" in attempt.worker_log(0).read_text()
    shown = hpc_dynamo("logs", "name=prompts", "0-shard-1", cwd=tmp_path)
    assert "node 1 of 2, connected to node 0" in shown.stdout, shown.stderr


def _pids(attempt: Attempt, shard: int) -> list[int]:
    """Return the engine processes of a shard that run, without supervisors."""
    found = list[int]()
    log = str(attempt.worker_log(0, shard))
    for stdout in Path("/proc").glob("[0-9]*/fd/2"):
        try:
            words = (stdout.parents[1] / "cmdline").read_bytes().split(b"\0")
            engine = os.readlink(stdout) == log and b"supervisor.py" not in words[3]
        except (OSError, IndexError):
            continue
        found += [int(stdout.parts[2])] if engine else []
    return found


def _started(tmp_path: Path, *words: str) -> Attempt:
    """Start a batch; return once it has results."""
    done = hpc_dynamo("batch", "--detach", *TWO_SHARDS, *SLOW, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    attempt = latest(tmp_path / "runs/prompts")
    until("results", lambda: (tmp_path / "runs/prompts/parts/1.jsonl").exists())
    return attempt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shard", "words"),
    [(0, ()), (1, ()), (1, ("engine.args.outlive-nodes=true",))],
    ids=["first shard", "other shard", "other shard and the first hangs"],
)
def test_worker_restarts_after_a_shard_was_killed(
    tmp_path: Path, shard: int, words: tuple[str, ...]
) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 24)
    attempt = _started(tmp_path, *words)
    before = {p: _pids(attempt, p) for p in (0, 1)}
    assert [len(pids) for pids in before.values()] == [1, 1]
    os.kill(before[shard][0], signal.SIGKILL)
    outcome = until("the outcome", attempt.outcome)
    assert outcome.exit_code == 0, outcome
    each_once(tmp_path / "runs/prompts", ids)
    log = attempt.agent_log(0).read_text()
    assert f"worker 0 (aggregated), shard {shard + 1} of 2, on " in log
    # Either the killed shard or the one that it takes along is seen first.
    assert "was killed by signal 9" in log or "EngineError: node 0 is gone" in log
    assert str(attempt.worker_log(0, shard)) in log
    assert "2 restarts left" in log
    starts = [len(re.findall("starts: ", attempt.agent_log(n).read_text())) for n in (0, 1)]
    assert starts == [2, 2], "a shard was not restarted with the other"
    until("no engine left", lambda: not any(_pids(attempt, p) for p in (0, 1)))


@pytest.mark.slow
def test_error_of_worker_names_the_lost_agent_of_its_shard(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 200)
    attempt = _started(tmp_path, "cluster.heartbeat_timeout_s=4")
    os.kill({node.node: node.pid for node in attempt.nodes()}[1], signal.SIGKILL)
    outcome = until("the outcome", attempt.outcome)
    assert outcome.exit_code == 1
    assert "no aggregated worker is left" in outcome.message
    assert "a shard of worker 0 (aggregated) is lost: node 1" in outcome.message
    assert str(attempt.agent_log(1)) in outcome.message
    until("no engine left", lambda: not any(_pids(attempt, p) for p in (0, 1)))
