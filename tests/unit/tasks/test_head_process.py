"""The task of node 0 as the parent of heads that cannot start."""

import asyncio
from pathlib import Path

from hpc_dynamo.config import Config
from hpc_dynamo.head.workloads.endpoint_socket import KeptPort
from hpc_dynamo.messages import Roster
from hpc_dynamo.run import Attempt, Run, Secrets, write_json
from hpc_dynamo.tasks.head_process import STOPPED, HeadProcess
from hpc_dynamo.topology import Plan
from hpc_dynamo.wire.control import listening_socket, new_keys

LOCAL = "127.0.0.1"


def broken_attempt(folder: Path) -> Attempt:
    """Return an attempt whose heads die of a defect: the roster has no nodes."""
    run, (public, private) = Run(folder / "run"), new_keys()
    run.create(Secrets(token="t", public=public, private=private))
    attempt = run.new_attempt(Config(), Plan(workers=(), nodes=1, gpus_per_node=0))
    write_json(attempt.roster_file, Roster(nodes=(), method="tcp", seconds=0.0))
    attempt.agent_log(0).touch()
    return attempt


async def test_crash_loop_ends_the_job_with_the_last_words(tmp_path: Path) -> None:
    attempt, starts = broken_attempt(tmp_path), list[int]()

    async def on_start() -> None:
        starts.append(1)

    with listening_socket(LOCAL) as listening, KeptPort(LOCAL) as endpoint:
        head = HeadProcess(attempt, listening, endpoint.socket, on_start, max_restarts=1)
        outcome = await head.run()
    assert len(starts) == 2
    assert outcome.exit_code == 1
    said = "the head died 2 times within 10 min: exit code 1: IndexError: tuple index out of range"
    assert outcome.message == f"{said}\n  log: {attempt.agent_log(0)}"


async def test_stop_while_no_head_runs(tmp_path: Path) -> None:
    attempt = broken_attempt(tmp_path)

    async def on_start() -> None:
        head.stop()

    with listening_socket(LOCAL) as listening, KeptPort(LOCAL) as endpoint:
        head = HeadProcess(attempt, listening, endpoint.socket, on_start)
        assert await asyncio.wait_for(head.run(), 60) == STOPPED
