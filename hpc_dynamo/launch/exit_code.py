"""End a job with the exit code of its attempt, so that Slurm and dependent jobs see it.

    python -m hpc_dynamo.launch.exit_code ATTEMPT CODE

CODE is that of srun: the highest of all tasks. It is used only if the head wrote no outcome, since
a lost agent does not fail a job whose head finished the work.

Slurm sets a silent node down after minutes (SlurmdTimeout). If a node is rebooted in less time,
srun ends the step on all nodes, also with --no-kill, and Slurm does not requeue the job. So this
program does.
"""

import logging
import os
import sys
from datetime import datetime
from pathlib import Path

from hpc_dynamo.errors import LaunchError, MissingDependency
from hpc_dynamo.launch.next_attempt import requeue
from hpc_dynamo.launch.slurm import slurm_command
from hpc_dynamo.printable import LineFormatter
from hpc_dynamo.run import Attempt

log = logging.getLogger(__name__)


def exit_code(attempt: Attempt, srun_code: int) -> int:
    """Return the exit code of a job whose step has ended."""
    outcome = attempt.outcome()
    return outcome.exit_code if outcome else srun_code


def main(attempt: Attempt, srun_code: int) -> int:
    """Requeue the job if a reboot has ended its step, and return its exit code."""
    if attempt.outcome() is None and srun_code and "SLURM_JOB_ID" in os.environ:
        try:
            if rebooted := _rebooted_nodes(os.environ["SLURM_JOB_ID"]):
                log.warning("requeued, since %s was rebooted", ", ".join(rebooted))
                requeue()
        except (LaunchError, MissingDependency) as e:
            log.warning("unknown if a node was rebooted: %s", e)
    return exit_code(attempt, srun_code)


def _rebooted_nodes(job_id: str) -> list[str]:
    """Return the nodes of a running job on which Slurm's daemon is younger than the job."""
    (job,) = _records(slurm_command("scontrol", "--oneliner", "show", "job", job_id))
    if job["JobState"] != "RUNNING":  # it was cancelled
        return []
    shown = slurm_command("scontrol", "--oneliner", "show", "node", job["NodeList"])
    began = _time(job["StartTime"])
    return [node["NodeName"] for node in _records(shown) if _time(node["SlurmdStartTime"]) > began]


def _records(shown: str) -> list[dict[str, str]]:
    """Return the fields of each line that scontrol shows."""
    lines = (line.split() for line in shown.splitlines() if line)
    return [dict(w.split("=", 1) for w in reversed(words) if "=" in w) for words in lines]


def _time(text: str) -> datetime:
    return datetime.min if text in ("None", "Unknown", "N/A") else datetime.fromisoformat(text)


if __name__ == "__main__":
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    sys.exit(main(Attempt(Path(sys.argv[1])), int(sys.argv[2])))
