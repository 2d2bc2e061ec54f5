"""End of a job that has lost the node of its head.

Spare nodes need --no-kill. Slurm then takes a failed node out of the job and lets the job continue,
even without its batch script and its head. So the agents restart the job.
"""

import asyncio
import logging

from hpc_dynamo.errors import LaunchError
from hpc_dynamo.launch.next_attempt import requeue
from hpc_dynamo.launch.node import expand_hosts
from hpc_dynamo.launch.slurm import slurm_command
from hpc_dynamo.run import Attempt

POLL_S = 10.0  # Slurm sets a silent node down after minutes (SlurmdTimeout)

log = logging.getLogger(__name__)


async def restart_headless_job(attempt: Attempt) -> None:
    """Requeue the job once Slurm has taken the node of the head out of it, or cancel the job if
    Slurm refuses. Called by an agent that has lost its head.

    Returns without it if the head has ended the run, or if Slurm itself handles lost nodes.
    """
    job, roster = attempt.job(), attempt.roster()
    if not (job and job.launcher == "slurm" and roster and attempt.plan().spare_nodes):
        return
    log.warning("waiting until Slurm knows if %s is lost", roster.nodes[0].host)
    while attempt.outcome() is None:
        if await asyncio.to_thread(_is_lost, job.job_id, roster.nodes[0].host):
            log.error("the node of the head is lost: this job starts again")
            if not requeue():
                slurm_command("scancel", job.job_id)
            return
        await asyncio.sleep(POLL_S)


def _is_lost(job_id: str, host: str) -> bool:
    """Return True if the node is no longer part of the job."""
    try:
        shown = slurm_command("squeue", "--noheader", "--jobs", job_id, "--format", "%N").strip()
        return bool(shown) and host not in expand_hosts(shown)
    except LaunchError as e:
        log.warning("%s", e)
        return False
