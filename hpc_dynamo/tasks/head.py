"""Head of a job: `python -m hpc_dynamo.tasks.head ATTEMPT CONTROL_FD OUTCOME_FD`.

Started by the task of node 0, which restarts it if it dies (`head_process`). It listens on the
inherited socket CONTROL_FD, so agents find every head at the same address. It writes its outcome to
OUTCOME_FD, one line of JSON: first when the job ends, and again when all agents have stopped.
"""

import os
import socket
import sys
from pathlib import Path

import msgspec

from hpc_dynamo.errors import BootstrapError
from hpc_dynamo.head import Head
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Attempt
from hpc_dynamo.tasks.node import (
    CODEC,
    log_to_file,
    on_preemption_signal,
    on_stop_signal,
    run_to_outcome,
)
from hpc_dynamo.wire import ControlServer


def main(path: str, control_fd: int, outcome_fd: int) -> int:
    """Run the head of the attempt in `path`; return its exit code."""
    attempt = Attempt(Path(path))
    log_file = attempt.agent_log(0)
    log_to_file(log_file)
    outcome = run_to_outcome(_run(attempt, control_fd, outcome_fd), log_file)
    _write(outcome_fd, outcome)
    return outcome.exit_code


async def _run(attempt: Attempt, control_fd: int, outcome_fd: int) -> Outcome:
    roster = attempt.roster()
    if roster is None:
        raise BootstrapError(f"{attempt.roster_file} is missing", hint="start the run again")
    with socket.socket(fileno=control_fd) as listening:
        address = roster.nodes[0].address
        server = ControlServer(address, attempt.run.secrets().keys, CODEC, listening)
        try:
            head = Head(attempt, roster, server, lambda outcome: _write(outcome_fd, outcome))
            on_stop_signal(head.interrupt)
            on_preemption_signal(head.on_preemption_signal)
            return await head.run()
        finally:
            server.close()


def _write(fd: int, outcome: Outcome) -> None:
    os.write(fd, msgspec.json.encode(outcome) + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
