"""Workers over several nodes: what their parts are told, and that they live and die together."""

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
TWO_PARTS = (
    *SIMULATOR,
    *("engine.device=cuda", "cluster.gpus_per_node=1", "cluster.preflight=false"),
    *("topology=aggregated", "topology.aggregated.tensor_parallel=2", "input=prompts.jsonl"),
)
SLOW = ("engine.args.time-scale=20", "batch.concurrency=4")


# What the head passes on

WORKER = Worker(3, Role.decode, (Shard(4, (0,)), Shard(5, (0,)), Shard(6, (0,))))
MEET = StartShard(rank=3, role=Role.decode, incarnation=1, address="10.0.0.4", ports=(5000, 5001))
DIED = ShardExited(rank=3, incarnation=1, detail="part 2 of 3 was killed")


class Sent(list[tuple[int, ControlMessage]]):
    """Node and message, in their order."""

    def __call__(self, node: int, message: ControlMessage) -> Awaitable[None]:
        self.append((node, message))
        return nothing()


async def nothing() -> None:
    pass


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
async def parts(sent: Sent) -> MultiNodeCoordinator:
    """Of a worker that has begun to live."""
    parts = MultiNodeCoordinator(sent)
    await parts.on_message(WORKER, MEET)
    return parts


async def test_the_nodes_of_further_parts_are_told_where_to_meet(
    parts: MultiNodeCoordinator, sent: Sent
) -> None:
    assert sent == [(5, MEET), (6, MEET)]


async def test_who_comes_late_is_told_then(parts: MultiNodeCoordinator, sent: Sent) -> None:
    sent.clear()
    await parts.node_joined(6)
    await parts.node_joined(4)
    await parts.node_joined(7)
    assert sent == [(6, MEET)]


async def test_a_death_is_told_to_the_first_part(parts: MultiNodeCoordinator, sent: Sent) -> None:
    sent.clear()
    await parts.on_message(WORKER, DIED)
    assert sent == [(4, DIED)]


async def test_when_a_life_is_over_what_is_left_of_it_ends_once(
    parts: MultiNodeCoordinator, sent: Sent
) -> None:
    sent.clear()
    await parts.stop_worker(3)
    await parts.stop_worker(3)
    assert sent == [(5, StopShard(rank=3)), (6, StopShard(rank=3))]
    sent.clear()
    await parts.on_message(WORKER, DIED)
    await parts.node_joined(5)
    await parts.node_lost(6, "silent")
    assert sent == [], "the life is over"


async def test_a_node_that_is_gone_ends_this_life_and_every_later_one(
    parts: MultiNodeCoordinator, sent: Sent
) -> None:
    sent.clear()
    await parts.node_lost(6, "node 6 (n6) is gone: silent for 4 s")
    ((node, died),) = sent
    assert node == 4
    assert isinstance(died, ShardExited)
    assert died.incarnation == 1
    assert died.detail == "a part of worker 3 (decode) is lost: node 6 (n6) is gone: silent for 4 s"
    sent.clear()
    await parts.on_message(WORKER, again := replace(MEET, incarnation=2))
    assert (5, again) in sent
    assert [m.incarnation for n, m in sent if n == 4 and isinstance(m, ShardExited)] == [2]


async def test_a_node_without_a_further_part_ends_nothing(
    parts: MultiNodeCoordinator, sent: Sent
) -> None:
    sent.clear()
    await parts.node_lost(7, "silent")
    assert sent == []


# Two agents on this machine


def test_a_batch_by_a_worker_of_two_parts(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 20)
    done = hpc_dynamo("batch", *TWO_PARTS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/prompts"
    assert list(answers(run / "output.jsonl")) == ids
    attempt = latest(run)
    assert attempt.plan().nodes == 2
    assert "node 1 is here" in attempt.worker_log(0).read_text()
    shown = hpc_dynamo("logs", "name=prompts", "0-shard-1", cwd=tmp_path)
    assert "node 1 of 2, with node 0" in shown.stdout, shown.stderr


def _pids(attempt: Attempt, part: int) -> list[int]:
    """Of the engines of a part that live, by their command lines, keepers left out."""
    found = list[int]()
    log = str(attempt.worker_log(0, part))
    for stdout in Path("/proc").glob("[0-9]*/fd/2"):
        try:
            words = (stdout.parents[1] / "cmdline").read_bytes().split(b"\0")
            ours = os.readlink(stdout) == log and b"keeper.py" not in words[3]
        except (OSError, IndexError):
            continue
        found += [int(stdout.parts[2])] if ours else []
    return found


def _started(tmp_path: Path, *words: str) -> Attempt:
    """With an engine of either part that lives, and some results."""
    done = hpc_dynamo("batch", "--detach", *TWO_PARTS, *SLOW, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    attempt = latest(tmp_path / "runs/prompts")
    until("results", lambda: (tmp_path / "runs/prompts/parts/1.jsonl").exists())
    return attempt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "words"),
    [(0, ()), (1, ()), (1, ("engine.args.outlive-nodes=true",))],
    ids=["the first", "a further one", "a further one, and the first hangs"],
)
def test_a_part_that_dies_has_its_worker_started_again(
    tmp_path: Path, part: int, words: tuple[str, ...]
) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 60)
    attempt = _started(tmp_path, *words)
    before = {p: _pids(attempt, p) for p in (0, 1)}
    assert [len(pids) for pids in before.values()] == [1, 1]
    os.kill(before[part][0], signal.SIGKILL)
    outcome = until("the outcome", attempt.outcome)
    assert outcome.exit_code == 0, outcome
    each_once(tmp_path / "runs/prompts", ids)
    said = attempt.agent_log(0).read_text()
    assert f"worker 0 (aggregated), part {part + 1} of 2, on " in said
    assert "was killed by signal 9" in said
    assert str(attempt.worker_log(0, part)) in said
    assert "2 restarts left" in said
    starts = [len(re.findall("starts: ", attempt.agent_log(n).read_text())) for n in (0, 1)]
    assert starts == [2, 2], "a part was not started again with the other"
    until("no engine left", lambda: not any(_pids(attempt, p) for p in (0, 1)))


@pytest.mark.slow
def test_a_lost_agent_is_named_by_the_worker_that_it_had_a_part_of(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 200)
    attempt = _started(tmp_path, "cluster.heartbeat_timeout_s=4")
    os.kill({node.node: node.pid for node in attempt.nodes()}[1], signal.SIGKILL)
    outcome = until("the outcome", attempt.outcome)
    assert outcome.exit_code == 1
    assert "no aggregated worker is left" in outcome.message
    assert "a part of worker 0 (aggregated) is lost: node 1" in outcome.message
    assert str(attempt.agent_log(1)) in outcome.message
    until("no engine left", lambda: not any(_pids(attempt, p) for p in (0, 1)))
