"""A trial of MPI ranks, for workers that run as MPI ranks over several nodes.

The ranks are started like those of the engine, with its interpreter and in its container. They
have a Slurm step of their own, because a crash in MPI_Init ends the whole step.
"""

import asyncio
import sys
from collections.abc import Sequence

from hpc_dynamo.config import Cluster, with_worker_options
from hpc_dynamo.engines import EngineCommand, Placement, in_container, is_mpi_step
from hpc_dynamo.engines.environment import python_executable
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.launch import bootstrap_step, mpi_step
from hpc_dynamo.process.child import clean_environment
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Worker

MPI_LIMIT_S = 20.0  # for one trial
MARK = "hpc-dynamo-world"
PROGRAM = f"from mpi4py import MPI; print('{MARK}', MPI.COMM_WORLD.size, flush=True)"


async def mpi_step_error(attempt: Attempt) -> str:
    """Try the first worker that runs as MPI ranks. Return an error, or an empty text.

    A failure is tried once more, because a run also restarts an engine that crashes once.
    """
    config, plan = attempt.config(), attempt.plan()
    workers = (w for w in plan.group_plans[0].workers if is_mpi_step(config, w))
    worker = next(workers, None)
    if worker is None:
        return ""
    try:
        async with asyncio.timeout(MPI_LIMIT_S):
            return await _try(attempt, worker) and await _try(attempt, worker)
    except TimeoutError:
        return f"the ranks of worker {worker.rank} did not meet within {MPI_LIMIT_S:.0f} s"
    except (HpcDynamoError, OSError) as e:
        return f"the ranks of worker {worker.rank} cannot be started: {e}"


async def exchange_error(cluster: Cluster, hosts: Sequence[str]) -> str:
    """Try a step of one rank per node, like that of the bootstrap. Return an error, or ""."""
    rank = (sys.executable, "-c", PROGRAM)
    argv, env = await asyncio.to_thread(bootstrap_step.step_command, cluster, hosts, rank)
    process = await asyncio.create_subprocess_exec(
        *argv, env=env, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(MPI_LIMIT_S):
            output = (await process.communicate())[0].decode(errors="replace")
    except TimeoutError:
        process.terminate()  # srun ends its tasks
        return f"the ranks did not meet within {MPI_LIMIT_S:.0f} s"
    if output.count(f"{MARK} {len(hosts)}\n") == len(hosts):
        return ""
    return f"the {len(hosts)} ranks did not meet: {mpi_step.last_message(output)}"


async def _try(attempt: Attempt, worker: Worker) -> str:
    own = with_worker_options(attempt.config(), worker.model, worker.role)
    ranks = sum(len(s.gpus) for s in worker.shards)
    bare = EngineCommand((python_executable(own.engine), "-c", PROGRAM), own.engine.env)
    logs = str(attempt.logs)
    placement = Placement(worker, address="", ports=(), gpus=(), token="", log_folder=logs)
    command = in_container(own, placement, bare)
    step = mpi_step.WorkerStep(worker, container_args=command.container_args)
    argv = await asyncio.to_thread(step.command, own, attempt.plan(), command.argv)
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=mpi_step.step_environment(clean_environment(command.env)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await process.communicate())[0].decode(errors="replace")
    finally:
        if process.returncode is None:
            process.kill()  # only srun; the step follows
            await process.wait()
            await asyncio.to_thread(step.signal, "KILL")
    if output.count(f"{MARK} {ranks}\n") == ranks:
        return ""
    last = mpi_step.last_message(output)
    return f"the {ranks} ranks of worker {worker.rank} did not meet: {last}"
