"""Task of a job, one per node: exchanges addresses, then runs the agent.

On node 0 it also runs the head, in a child process that it restarts.

Started by submitit (`main`) or as `python -m hpc_dynamo.tasks.node ATTEMPT` inside an allocation.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop
from msgspec.structs import replace

from hpc_dynamo.agent import Agent
from hpc_dynamo.bootstrap import MpiStep, exchange_addresses, rank_command
from hpc_dynamo.bootstrap.address import address_for_extra_jobs, job_address
from hpc_dynamo.config import Task
from hpc_dynamo.descriptors import raise_descriptor_limit
from hpc_dynamo.doctor.preflight import preflight
from hpc_dynamo.errors import HpcDynamoError, LaunchError, file_error, file_error_in
from hpc_dynamo.head.workloads.endpoint_socket import KeptPort
from hpc_dynamo.launch import bootstrap_step, next_attempt, retry
from hpc_dynamo.launch.headless_job import restart_headless_job
from hpc_dynamo.launch.node import is_requeued, node_index_and_hosts, restart_count
from hpc_dynamo.launch.sole_use import wait_for_earlier_jobs
from hpc_dynamo.launch.task_folder import refuse_unsafe_folder
from hpc_dynamo.messages import ControlMessage, NodeRecord, Outcome, Preempted
from hpc_dynamo.printable import LineFormatter
from hpc_dynamo.process.identity import start_ticks
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.run.logs import BoundedFileHandler, RateLimit
from hpc_dynamo.tasks.head_process import HeadProcess
from hpc_dynamo.tasks.start_layout import start_layout
from hpc_dynamo.tasks.superseded import is_superseded, stop_if_superseded
from hpc_dynamo.wire import ControlClient, MessageCodec
from hpc_dynamo.wire.control import endpoint_of, listening_socket

CODEC: MessageCodec[ControlMessage] = MessageCodec(ControlMessage)  # type: ignore[arg-type]  # a union is no type[T]

EARLIER_JOB_S = 60.0  # limit for the end of the job before this one
RESERVED_FILE, RESERVED_BYTES = ".reserved", 1 << 16

log = logging.getLogger(__name__)


def main(path: str) -> int:
    """Run the task of this node for the attempt in `path`; return its exit code."""
    raise_descriptor_limit()
    attempt = Attempt(Path(path))
    if refused := refuse_unsafe_folder(attempt.run):
        return refused
    index, hosts = node_index_and_hosts(attempt.plan().head_plan.nodes)
    log_to_file(attempt.agent_log(index))
    if index == 0 and is_requeued():
        attempt.reset_for_requeue()
    if index == 0:
        reserve_outcome_space(attempt)
    outcome = run_to_outcome(_node(attempt, index, hosts), attempt.agent_log(index))
    if index == 0 and not is_superseded(attempt):
        _conclude(attempt, outcome)
    return outcome.exit_code


def reserve_outcome_space(attempt: Attempt) -> None:
    """Reserve the disk space that the outcome needs."""
    with suppress(OSError):
        (attempt.path / RESERVED_FILE).write_bytes(os.urandom(RESERVED_BYTES))


def write_outcome(attempt: Attempt, outcome: Outcome) -> None:
    """Write the outcome, into the reserved space if the disk is full."""
    with suppress(OSError):
        (attempt.path / RESERVED_FILE).unlink(missing_ok=True)
    try:
        write_json(attempt.outcome_file, replace(outcome, restart_count=restart_count()))
    except FileNotFoundError as e:
        log.error("the run folder was deleted: %s", file_error(e))


def run_to_outcome(
    task: Coroutine[Any, Any, Outcome], file: Path, *, raise_defects: bool = False
) -> Outcome:
    """Run a task and return its outcome, also if it fails. `file` is its log."""
    try:
        return uvloop.run(task)
    except asyncio.CancelledError:
        message = "stopped before all nodes had started"
        return Outcome(exit_code=1, message=message, stopped=True)
    except HpcDynamoError as e:
        log.error("%s", e)
        return Outcome(exit_code=e.exit_code, message=str(e), bad_hosts=e.bad_hosts)
    except Exception as e:  # a defect, or a file error in a group: both need an outcome
        if error := file_error_in(e, near=file):
            log.error("%s", error)
            return Outcome(exit_code=error.exit_code, message=f"{error}\n  log: {file}")
        if raise_defects:
            raise
        log.exception("this is a defect of hpc-dynamo")
        message = f"{type(e).__name__}: {e}\n  log: {file}"
        return Outcome(exit_code=1, message=message)


def _conclude(attempt: Attempt, outcome: Outcome) -> None:
    if last := _continue_in_next_job(attempt, outcome):
        write_outcome(attempt, last)


def _continue_in_next_job(attempt: Attempt, outcome: Outcome) -> Outcome | None:
    """Requeue this job or submit the next one, if work is left; return the outcome to write.

    Returns None if this attempt continues after a requeue.
    """
    job = attempt.job()
    if outcome.bad_hosts and job and job.launcher == "slurm":
        return retry.submit_without(attempt, outcome)
    if not outcome.requeue or job is None or job.launcher == "local":
        return outcome
    if next_attempt.requeue():
        log.info("requeued")
        # The requeued script of a user starts another attempt.
        return None if job.launcher == "slurm" else outcome
    if job.launcher == "allocation":  # the allocation belongs to the user
        return outcome
    try:
        number = asyncio.run(next_attempt.submit_next_attempt(attempt)).number
    except LaunchError as e:
        return replace(outcome, message=f"{outcome.message}; {e}")
    message = f"the walltime ended; attempt {number} continues"
    return replace(outcome, message=message, next_attempt=number)


async def _node(attempt: Attempt, index: int, hosts: list[str]) -> Outcome:
    # Until there is a head or an agent, a signal cancels this task.
    on_stop_signal(asyncio.current_task().cancel)  # type: ignore[union-attr]  # runs in a task
    preempted = asyncio.Event()
    on_preemption_signal(preempted.set)
    config, secrets = attempt.config(), attempt.run.secrets()
    address = job_address(config.cluster.interface, hosts)
    if config.planner.scale_out.max_nodes or attempt.plan().separate_jobs:
        address = address_for_extra_jobs(address)
    me = node_record(index, hosts[index], address, attempt.agent_log(index))
    if config.route.engines:
        return await _run_standalone(attempt, me)
    if index == 0 and config.task is not Task.serve:  # its next job starts before it ends
        await asyncio.to_thread(wait_for_earlier_jobs, attempt, EARLIER_JOB_S)
    listening = listening_socket(address) if index == 0 else None
    me = replace(me, control_endpoint=endpoint_of(listening) if listening else "")
    me = replace(me, faults=preflight(config, attempt.plan(), index, address, hosts[index]))
    try:
        settings = config.cluster.bootstrap
        step = await asyncio.to_thread(_bootstrap_step, attempt, hosts) if listening else None
        spare_nodes = attempt.plan().spare_nodes
        roster = await exchange_addresses(me, hosts, attempt, settings, step, spare_nodes)
        roster, layout = start_layout(attempt, roster, hosts, is_head=index == 0)
        client = ControlClient(roster.control_endpoint, secrets.keys, CODEC)
        try:
            agent = Agent(attempt, me, client, secrets.token, layout)
            if listening:
                return await _run_with_head(attempt, listening, agent, client, preempted)
            return await _run_agent(attempt, agent)
        finally:
            client.close()
    finally:
        if listening:
            listening.close()


def _bootstrap_step(attempt: Attempt, hosts: list[str]) -> MpiStep | None:
    """Return the step for an exchange of addresses by MPI; None if TCP is to be used."""
    cluster = attempt.config().cluster
    if not bootstrap_step.wants_mpi(cluster, len(hosts)):
        return None
    if reason := bootstrap_step.unavailable(cluster):
        log.info("addresses are exchanged over TCP: %s", reason)
        return None
    return MpiStep(*bootstrap_step.step_command(cluster, hosts, rank_command(attempt, hosts)))


def node_record(node: int, host: str, address: str, log_file: Path) -> NodeRecord:
    """Return the record of this task's agent."""
    return NodeRecord(
        node=node,
        host=host,
        address=address,
        pid=os.getpid(),
        log=str(log_file),
        started_at=time.time(),
        slurm_step_id=os.environ.get("SLURM_STEP_ID", ""),
        pid_started=start_ticks(os.getpid()),
    )


async def _run_standalone(attempt: Attempt, me: NodeRecord) -> Outcome:
    """Serve in front of engines that hpc_dynamo did not start."""
    from hpc_dynamo.head.standalone import Standalone

    write_json(attempt.node_file(me.node), me)
    head = Standalone(attempt, me.address)
    on_stop_signal(head.interrupt)
    return await head.run()


async def _run_with_head(
    attempt: Attempt,
    listening: socket.socket,
    agent: Agent,
    client: ControlClient[ControlMessage],
    preempted: asyncio.Event,
) -> Outcome:
    """Run the agent of node 0 and the head. Each new head learns that the job ends soon."""

    async def report_preemption() -> None:
        if preempted.is_set():
            await client.send(Preempted(node=0))

    def on_preemption() -> None:
        preempted.set()
        group.create_task(report_preemption())

    with KeptPort(attempt.config().serve.host or listening.getsockname()[0]) as endpoint:
        head = HeadProcess(attempt, listening, endpoint.socket, report_preemption)
        on_stop_signal(head.stop)
        async with asyncio.TaskGroup() as group:
            on_preemption_signal(on_preemption)
            group.create_task(agent.run(), name="agent")
            superseded = group.create_task(stop_if_superseded(attempt, head.stop))
            outcome = await head.run()
            endpoint.close()
            superseded.cancel()
            agent.stop()
    return outcome


async def _run_agent(attempt: Attempt, agent: Agent) -> Outcome:
    """Run the agent. A stop signal ends this node only; the head watches the walltime."""
    on_stop_signal(agent.stop)
    await agent.run()
    if agent.contact.lost:
        on_stop_signal(asyncio.current_task().cancel)  # type: ignore[union-attr]  # runs in a task
        await restart_headless_job(attempt)
    return Outcome(exit_code=0)


def on_stop_signal(action: Callable[[], object]) -> None:
    """Call `action` at SIGTERM and SIGINT from now on; submitit ignores these signals."""
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, action)


def on_preemption_signal(action: Callable[[], object]) -> None:
    """Call `action` at Slurm's signal before the end of the job; submitit would end the job."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, action)


def log_to_file(file: Path, *, to_slurm: bool = True) -> None:
    """Log to a file, and warnings also to Slurm's output, which is that of this process."""
    to_file, output = BoundedFileHandler(file), logging.StreamHandler()
    output.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in (to_file, output) if to_slurm else (to_file,):
        handler.setFormatter(LineFormatter())
        handler.addFilter(RateLimit())
        root.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
