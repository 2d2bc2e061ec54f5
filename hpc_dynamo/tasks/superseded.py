"""End of an execution of a job after Slurm has restarted the job on other nodes.

Slurm cannot end the processes of a node that it has set down. The restarted job writes a roster
with a higher restart count into the same folder.
"""

import asyncio
import logging
from collections.abc import Callable

from hpc_dynamo.config import Task
from hpc_dynamo.launch.node import restart_count
from hpc_dynamo.messages import Roster
from hpc_dynamo.run import Attempt

CHECK_S = 5.0
END_S = 5.0  # to cancel the requests of a batch

log = logging.getLogger(__name__)


async def wait_for_earlier_execution(roster: Roster, task: Task) -> None:
    """Give an execution from before a requeue time to end, so that no request of a batch is run
    twice. Engines start meanwhile."""
    if roster.restart_count and task is not Task.serve:
        await asyncio.sleep(CHECK_S + END_S)


def is_superseded(attempt: Attempt) -> bool:
    """Return True if Slurm has restarted the job of this process, which still runs."""
    roster = attempt.roster()
    return roster is not None and roster.restart_count > restart_count()


async def stop_if_superseded(attempt: Attempt, stop: Callable[[], None]) -> None:
    """Call `stop` as soon as the job was restarted. Runs until then, or until cancelled."""
    while True:
        if await asyncio.to_thread(is_superseded, attempt):
            log.error("Slurm has restarted this job on other nodes: ending this execution")
            return stop()
        await asyncio.sleep(CHECK_S)
