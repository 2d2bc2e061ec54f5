"""Head of a job: `python -m hpc_dynamo.tasks.head ATTEMPT CONTROL_FD ENDPOINT_FD REPORTS_FD`.

Started by the task of node 0, which restarts it if it dies or hangs (`head_process`). It listens on
the inherited socket CONTROL_FD, so agents find every head at the same address. ENDPOINT_FD is for
the port of an endpoint: no other user can take it after a head has died. The head reports its
progress and its outcome to REPORTS_FD (`head_reports`).
"""

import asyncio
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

from hpc_dynamo.errors import BootstrapError
from hpc_dynamo.head.head import Head
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Attempt
from hpc_dynamo.tasks.head_reports import INTERVAL_S, report_outcome, report_progress
from hpc_dynamo.tasks.node import (
    CODEC,
    log_to_file,
    on_preemption_signal,
    on_stop_signal,
    run_to_outcome,
)
from hpc_dynamo.tasks.superseded import wait_for_earlier_execution
from hpc_dynamo.wire import ControlServer


def main(path: str, control_fd: int, endpoint_fd: int, reports_fd: int) -> int:
    """Run the head of the attempt in `path`; return its exit code. Raises defects."""
    attempt = Attempt(Path(path))
    log_to_file(attempt.agent_log(0), to_slurm=False)
    head = _run(attempt, control_fd, endpoint_fd, reports_fd)
    outcome = run_to_outcome(head, attempt.agent_log(0), raise_defects=True)
    report_outcome(reports_fd, outcome)
    return outcome.exit_code


async def _run(attempt: Attempt, control_fd: int, endpoint_fd: int, reports_fd: int) -> Outcome:
    roster, supervisor = attempt.roster(), os.getppid()
    if roster is None:
        raise BootstrapError(f"{attempt.roster_file} is missing", hint="start the run again")
    with (
        socket.socket(fileno=control_fd) as listening,
        socket.socket(fileno=endpoint_fd) as endpoint,
    ):
        address = roster.nodes[0].address
        server = ControlServer(address, attempt.run.secrets().keys, CODEC, listening)
        progress = asyncio.create_task(_report_progress(reports_fd), name="progress")
        try:
            await wait_for_earlier_execution(roster, attempt.config().task)
            head = Head(attempt, roster, server, partial(report_outcome, reports_fd), endpoint)
            on_stop_signal(lambda: _stop(head, supervisor))
            on_preemption_signal(head.on_preemption_signal)
            return await head.run()
        finally:
            progress.cancel()
            server.close()


async def _report_progress(fd: int) -> None:
    while True:
        report_progress(fd)
        await asyncio.sleep(INTERVAL_S)


def _stop(head: Head, supervisor: int) -> None:
    """End the job. But if the supervisor has died, which sends SIGTERM too, end only the head."""
    if os.getppid() == supervisor:
        head.interrupt()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
