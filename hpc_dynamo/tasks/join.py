"""Task of an extra job, one per node: runs an agent that joins the head of another job.

Started by submitit (`main`). The head's address is in the roster of the attempt, the keys are in
the run folder. If the head's job has not started yet, the agent waits for it. An agent stops if
the head falls silent or never answers. See head/scaling for the protocol.
"""

import asyncio
import logging
import time
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from hpc_dynamo import launch
from hpc_dynamo.agent import Agent
from hpc_dynamo.bootstrap.address import job_address
from hpc_dynamo.descriptors import raise_descriptor_limit
from hpc_dynamo.doctor.preflight import preflight, raise_for_faults, with_clock_faults
from hpc_dynamo.errors import BootstrapError
from hpc_dynamo.launch import JobState
from hpc_dynamo.launch.node import node_index_and_hosts
from hpc_dynamo.launch.task_folder import refuse_unsafe_folder
from hpc_dynamo.messages import ControlMessage, NodeRecord, Outcome, Preempted, Roster
from hpc_dynamo.run import ExtraJobFolder, write_json
from hpc_dynamo.tasks.node import (
    CODEC,
    log_to_file,
    node_record,
    on_preemption_signal,
    on_stop_signal,
    run_to_outcome,
)
from hpc_dynamo.wire import ControlClient

POLL_S = 0.5  # a shared disk has no event for new files
QUEUE_POLL_S = 10.0  # the scheduler serves many users

log = logging.getLogger(__name__)


def main(path: str) -> int:
    """Run the task of this node for the extra job in `path`; return its exit code."""
    raise_descriptor_limit()
    job = ExtraJobFolder(Path(path))
    if refused := refuse_unsafe_folder(job.run):
        return refused
    plan = job.plan()
    index, hosts = node_index_and_hosts(plan.nodes)
    node = plan.first_node + index
    log_to_file(job.agent_log(node))
    outcome = run_to_outcome(_join(job, node, hosts[index]), job.agent_log(node))
    if index == 0:
        write_json(job.outcome_file, outcome)
    return outcome.exit_code


async def _join(job: ExtraJobFolder, node: int, host: str) -> Outcome:
    on_stop_signal(asyncio.current_task().cancel)  # type: ignore[union-attr]  # runs in a task
    on_preemption_signal(lambda: log.info("the walltime ends soon"))
    roster = await _roster(job, node)
    if roster is None or job.attempt.outcome() is not None:
        return Outcome(exit_code=0, message="the run had ended before this job began")
    secrets = job.run.secrets()
    me = _record(job, node, host, roster)
    me = replace(me, faults=preflight(job.config(), job.plan(), node, me.address, host))
    write_json(job.node_file(node), me)
    own = replace(roster, nodes=(me,))
    raise_for_faults(with_clock_faults(own, 0.0, time.time()))
    client = ControlClient(roster.control_endpoint, secrets.keys, CODEC)
    try:
        agent = Agent(job, me, client, secrets.token)
        on_stop_signal(agent.stop)
        async with asyncio.TaskGroup() as group:
            on_preemption_signal(partial(_report_preemption, node, client, group))
            await agent.run()
    finally:
        client.close()
    return Outcome(exit_code=0)


async def _roster(job: ExtraJobFolder, node: int) -> Roster | None:
    """Wait for the roster of the head; return None if its job ended before it wrote one.

    One agent polls Slurm. The others find the outcome that it writes.
    """
    began = time.monotonic()
    while (roster := job.roster()) is None and not (job.attempt.outcome() or job.outcome()):
        await asyncio.sleep(POLL_S)
        if node == job.plan().first_node and time.monotonic() - began > QUEUE_POLL_S:
            began, head = time.monotonic(), launch.find_job(job.attempt)
            if head and (await asyncio.to_thread(head.state))[0] is JobState.ended:
                return None
    return roster


def _report_preemption(
    node: int, client: ControlClient[ControlMessage], group: asyncio.TaskGroup
) -> None:
    log.info("Slurm ends this job soon")
    group.create_task(client.send(Preempted(node=node)))


def _record(job: ExtraJobFolder, node: int, host: str, roster: Roster) -> NodeRecord:
    """Return the record of this node. Its address is the source of packets to the head."""
    interface, head = job.config().cluster.interface, roster.nodes[0]
    try:
        address = job_address(interface, [head.address])
    except OSError as e:
        hint = "cluster.interface=ib0, or another network that both nodes share"
        raise BootstrapError(f"{host} has no route to the head at {head.address}", hint=hint) from e
    return node_record(node, host, address, job.agent_log(node))
