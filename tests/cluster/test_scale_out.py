"""A Slurm job adds a node under load and releases it; no request fails."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hpc_dynamo.messages import ExtraJobState, ExtraJobStatus, NodeRecord, WorkerLoad
from hpc_dynamo.run import Attempt
from tests.cluster.serving import PLANNER, serving
from tests.cluster.slurm import SlurmCluster
from tests.support.load import Load, wait
from tests.support.runs import hpc_dynamo, until

pytestmark = pytest.mark.cluster

WORDS = (
    *("cluster.heartbeat_timeout_s=4", "cluster.reconnect_timeout_s=4", "topology.nodes=1"),
    *("topology.prefill.workers=1", "topology.decode.workers=1"),
    *("engine=simulator", "engine.args.timing=h100-8b", "engine.args.time-scale=5"),
    *(
        # 24 streams of 100 tokens use half of these blocks on one worker, a quarter on two.
        *("engine.args.num-blocks=160", "engine.args.max-model-len=2048"),
        "planner.scale_out.max_nodes=1",
        "planner.scale_out.scale_in_delay_s=15",
    ),
    *PLANNER,
    *(
        "planner.stabilization_intervals=2",
        "planner.prefill_wait_threshold_s=5",
    ),  # prefill does without
    "cluster.slurm.exclusive=true",  # else both jobs share a node
)
SOON_S = 120.0


@asynccontextmanager
async def on_one_node(
    cluster: SlurmCluster, folder: Path, *words: str
) -> AsyncIterator[tuple[Attempt, Load]]:
    """Run streams meanwhile."""
    async with serving(cluster, folder, *WORDS, *words, workers=2) as job:
        yield job.attempt, job.load(3, 100)


def job(attempt: Attempt, number: int) -> ExtraJobStatus | None:
    found = [g.state() for g in attempt.extra_jobs() if g.number == number]
    return found[0] if found else None


def loads(attempt: Attempt, known: ExtraJobStatus) -> list[WorkerLoad]:
    """Return the ranks of an extra job's workers."""
    status = attempt.status()
    return [w for w in status.loads if w.rank in known.ranks] if status else []


def serving_job(attempt: Attempt, after: int = 0) -> ExtraJobStatus | None:
    """Return the extra job that has answered requests, with a number greater than `after`.

    Its number is not known before: on a busy machine the load may seem low for some seconds, and
    then a pending job is cancelled and submitted again.
    """
    known = [state for folder in attempt.extra_jobs() if (state := folder.state())]
    running = [j for j in known if j.state is ExtraJobState.running and j.number > after]
    return next((j for j in running if any(w.served for w in loads(attempt, j))), None)


def has_ended(attempt: Attempt, number: int) -> bool:
    known = job(attempt, number)
    return known is not None and known.state is ExtraJobState.ended


def kill(cluster: SlurmCluster, agent: NodeRecord) -> None:
    """Kill a process by its pid in the namespace of its node."""
    subprocess.run(cluster.on(agent.host, "kill", "-9", str(agent.pid)), check=True)


def queue(cluster: SlurmCluster) -> list[str]:
    return cluster.slurm("squeue", "--noheader", "--format=%i").split()


async def test_node_is_added_under_load_and_released(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    """The first extra job is preempted under load; the second is no longer needed."""
    async with on_one_node(cluster, shared_dir) as (attempt, load):
        own = attempt.job()
        assert own

        def joined() -> bool:
            """Check it under load, since it is soon released without."""
            first = serving_job(attempt)
            if not first or sorted(queue(cluster)) != sorted([own.job_id, first.job_id]):
                return False
            shown = hpc_dynamo("status", "name=s", cwd=shared_dir, env=cluster.env)
            if f"extra job {first.job_id} running" not in shown.stdout:
                return False  # released meanwhile
            status = attempt.status()
            assert status
            assert len({w.host for w in status.workers} & {*cluster.nodes}) == 2
            return True

        stopped = list[int]()

        def preempted() -> bool:
            """Preempt it while it has streams."""
            first = serving_job(attempt)
            if not stopped and first and any(w.active for w in loads(attempt, first)):
                cluster.slurm("scancel", "--signal=USR2", first.job_id)
                stopped.append(first.number)
            return bool(stopped) and has_ended(attempt, stopped[0])

        def joined_again() -> bool:
            return serving_job(attempt, after=stopped[0]) is not None

        async with load.running(24):
            for step in (joined, preempted, joined_again):
                await wait(step, SOON_S)
        ended = job(attempt, stopped[0])
        assert ended
        assert "Slurm ends it soon" in ended.detail
        # More than nothing, but less.
        await load.run_until(lambda: not serving_job(attempt, after=stopped[0]), 1, SOON_S)
        until("only its own job", lambda: queue(cluster) == [own.job_id])
        assert load.pieces
    until("an empty queue", lambda: not queue(cluster))


async def test_extra_job_ends_with_its_head(cluster: SlurmCluster, shared_dir: Path) -> None:
    async with on_one_node(cluster, shared_dir, "planner.scale_out.scale_in_delay_s=300") as (
        attempt,
        load,
    ):
        await load.run_until(lambda: serving_job(attempt), 24, SOON_S)
        extra = serving_job(attempt)
        assert extra
        kill(cluster, next(attempt.nodes()))
        until("an empty queue", lambda: not queue(cluster), SOON_S)
        known = job(attempt, extra.number)
        assert known
        assert known.state is ExtraJobState.running, "only a running job can end without a report"
