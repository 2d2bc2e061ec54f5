"""Job on this machine, through submitit's local executor: one task for each node."""

import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import submitit

from hpc_dynamo.config import Config
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.launch import current_allocation
from hpc_dynamo.launch.environment import applied, for_step
from hpc_dynamo.launch.job import JobState
from hpc_dynamo.messages import JobRecord, NodeRecord, Outcome
from hpc_dynamo.process.identity import process_uid, start_ticks
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan

TASK = "hpc_dynamo.launch.submitit_task"
NO_WALLTIME_MIN = 365 * 24 * 60  # the local executor requires a limit


def submit(attempt: Attempt, config: Config, plan: Plan, entry: Callable[[str], int]) -> JobRecord:
    """Start `plan.nodes` agents on this machine; they continue when this process ends."""
    env = for_step(allocation=current_allocation.current_allocation() is not None)
    executor = CheckedLocalExecutor(attempt.submitit)
    executor.update_parameters(
        nodes=1,
        tasks_per_node=plan.nodes,
        gpus_per_node=plan.gpus_per_node,
        timeout_min=NO_WALLTIME_MIN,
    )
    with applied(env), _detached(attempt.submitit / "controller.log"):
        job = executor.submit(entry, str(attempt.path))
    return JobRecord(
        launcher="local",
        job_id=job.job_id,
        host=socket.gethostname(),
        pid=int(job.job_id),
        pid_started=start_ticks(int(job.job_id)),
        submitted_at=time.time(),
    )


class CheckedLocalExecutor(submitit.LocalExecutor):
    """submitit's local executor whose tasks check their pickle before they load it."""

    @property
    def _submitit_command_str(self) -> str:
        return shlex.join([sys.executable, "-u", "-m", TASK, str(self.folder)])


@contextmanager
def _detached(log: Path) -> Iterator[None]:
    """Start child processes that do not depend on this terminal. Mutates this process meanwhile.

    Children inherit ignored signals. Ctrl-C and a closed terminal then reach only the command,
    which stops the job in order, and not submitit's controller. Children do not inherit stdout and
    stderr, or a shell that captures them would wait for the children.
    """
    signals = (signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(s, signal.SIG_IGN) for s in signals]
    streams = {n: os.dup(n) for n in (1, 2)}
    with log.open("ab") as out:
        for number in streams:
            os.dup2(out.fileno(), number)
    try:
        yield
    finally:
        for number, saved in streams.items():
            os.dup2(saved, number)
            os.close(saved)
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)


class LocalJob:
    """Local job, running while its controller or one of its agents runs. Implements LaunchedJob."""

    requeuable = False

    def __init__(self, record: JobRecord, attempt: Attempt) -> None:
        self.record, self.attempt = record, attempt

    def _pids(self) -> list[int]:
        agents = [n for n in self.attempt.nodes() if n.host == socket.gethostname()]
        records: list[JobRecord | NodeRecord] = [self.record, *agents]
        return [each.pid for each in records if _runs(each, self.attempt)]

    def state(self) -> tuple[JobState, str]:
        if self.record.host != socket.gethostname():
            return JobState.unknown, f"it runs on {self.record.host}"
        return (JobState.running, self.record.host) if self._pids() else (JobState.ended, "ended")

    def continues_after(self, outcome: Outcome) -> bool:
        return False

    def stop(self) -> None:
        if self.record.host != socket.gethostname():
            hint = f"run `hpc-dynamo stop` on {self.record.host}"
            raise LaunchError(f"this job runs on {self.record.host}", hint=hint)
        for pid in self._pids():
            os.kill(pid, signal.SIGTERM)

    cancel = stop


def _runs(record: JobRecord | NodeRecord, attempt: Attempt) -> bool:
    """Return True if the recorded process of the attempt runs. False for zombies.

    Process ids are reused, and other users can choose their command lines. So the process must also
    belong to the owner of the run and have the recorded start. The run folder may be deleted.
    """
    pid = record.pid
    try:
        owner = attempt.path.stat().st_uid if attempt.path.exists() else os.getuid()
        if process_uid(pid) != owner:
            return False
        if record.pid_started not in (0, start_ticks(pid)):
            return False
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsencode(attempt.submitit) in file.read()
    except OSError:
        return False
