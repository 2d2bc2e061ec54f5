"""An endpoint adds an extra job, as processes on this machine, and releases it."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from hpc_dynamo import launch
from hpc_dynamo.messages import ExtraJobState, ExtraJobStatus, Status
from hpc_dynamo.planner.scale_out import ScaleOutRecord
from hpc_dynamo.run import Attempt
from tests.integration.serving.served import MODEL, Served, kill, restart_head, serving
from tests.support.load import Load
from tests.support.runs import hpc_dynamo, until

SHAPE = (
    "topology.prefill.workers=1",
    "topology.decode.workers=1",
    "router.conditional_disaggregation=false",
)
SLOW = (
    "engine.args.timing=h100-8b",
    "engine.args.time-scale=5",
    "engine.args.num-blocks=160",
    "engine.args.max-model-len=2048",
)
PLANNER = (
    *("planner.mode=load", "planner.interval_s=0.5", "planner.stabilization_intervals=2"),
    *(
        "planner.prefill_wait_threshold_s=0.2",
        "planner.kv_usage_high=0.3",
        "planner.kv_usage_low=0.05",
    ),
    *(
        "planner.scale_out.max_nodes=1",
        # On a busy machine the load of the first workers drops for seconds while the job starts.
        "planner.scale_out.scale_in_delay_s=10",
        "cluster.heartbeat_timeout_s=3",
        "cluster.reconnect_timeout_s=3",
    ),
)


def jobs(attempt: Attempt) -> list[ExtraJobStatus]:
    return [state for job in attempt.extra_jobs() if (state := job.state())]


def newest(attempt: Attempt) -> ExtraJobStatus:
    """Return the last extra job.

    On a busy machine the load may seem low for a second. Then a pending job is cancelled before it,
    and submitted again.
    """
    return jobs(attempt)[-1]


def node_hours(attempt: Attempt) -> float:
    return sum(job.node_hours for job in jobs(attempt))


def records(attempt: Attempt) -> list[ScaleOutRecord]:
    lines = attempt.scale_out_file.read_bytes().splitlines()
    return [msgspec.json.decode(line, type=ScaleOutRecord) for line in lines]


def served_by_new_workers(served: Served) -> bool:
    status = served.attempt.status()
    return status is not None and any(w.rank > 1 and w.served for w in status.loads)


def wait_until_released(served: Served) -> Status | None:
    """Return the status once there is no extra job."""
    status = served.attempt.status()
    return status if status and not status.extra_jobs else None


async def wait_for_scale_out(served: Served) -> Load:
    """Apply load until new workers answer requests."""
    load = Load(served.url, served.key, MODEL, prompt_words=1, max_tokens=100)
    await load.run_until(lambda: served_by_new_workers(served), clients=24)
    return load


@pytest.mark.slow
async def test_extra_job_is_added_under_load_and_released_without(
    tmp_path: Path, model_folder: Path
) -> None:
    with serving(tmp_path, *SHAPE, *SLOW, *PLANNER, f"model.path={model_folder}") as served:
        load = await wait_for_scale_out(served)
        assert set(load.pieces) == {100}
        folder = served.attempt.run.path
        shown = hpc_dynamo("status", "--once", str(folder), cwd=folder)
        assert "extra job" in shown.stdout, shown.stdout
        until("its end", lambda: newest(served.attempt).state is ExtraJobState.ended)
        status = until("a status without it", lambda: wait_until_released(served))
        assert sorted(worker.rank for worker in status.workers) == [0, 1]
        requested, back = records(served.attempt)[-2:]
        assert (requested.move.old, back.move.new) == (None, None)
        assert requested.jobs == back.jobs == (newest(served.attempt).number,)
        assert back.reason == "not needed"
        assert newest(served.attempt).node_hours > 0
        assert status.node_hours == node_hours(served.attempt)


@pytest.mark.slow
async def test_extra_jobs_survive_the_head_but_not_its_node(
    tmp_path: Path, model_folder: Path
) -> None:
    """The head of the second attempt stops and counts the jobs of the first one."""
    words = (
        *SHAPE,
        *SLOW,
        *PLANNER,
        f"model.path={model_folder}",
        "planner.scale_out.scale_in_delay_s=300",
        "cluster.reconnect_timeout_s=60",
    )
    with serving(tmp_path, *words) as first:
        await wait_for_scale_out(first)
        job, workers = newest(first.attempt), urls(first)
        await asyncio.to_thread(restart_head, first)
        await asyncio.to_thread(until, "all workers", lambda: urls(first) == workers)
        assert newest(first.attempt).job_id == job.job_id, "the job of the killed head continues"
        lose_node_of_head(first)
        until("the end of its job", lambda: not list(launch.live_attempts(first.attempt.run)))
        assert newest(first.attempt).state is ExtraJobState.running, (
            "only a running job can end without a report"
        )
        with serving(tmp_path, *words) as second:
            until("it is known", lambda: newest(first.attempt).state is ExtraJobState.ended)
            until("nothing is left", lambda: not first.processes())
            status = until(
                "a status", lambda: (s := second.attempt.status()) and s.node_hours and s
            )
            assert status.node_hours == node_hours(first.attempt)
            await wait_for_scale_out(second)
        assert newest(second.attempt).state is ExtraJobState.ended
        assert not second.processes()


def urls(served: Served) -> set[str]:
    return {row["url"] for rows in served.workers().values() for row in rows}


def lose_node_of_head(served: Served) -> None:
    """Kill the head and its task, so that neither ends anything in order."""
    os.kill(served.task, signal.SIGSTOP)
    kill(served.head)
    kill(served.task)
