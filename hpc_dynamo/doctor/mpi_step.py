"""Can the ranks of a worker that is one MPI world meet: tried as its agent would start them.

Without the engine, by its interpreter, in its image if it has one, in a step of its own: a crash in
MPI_Init ends the step that it happens in.
"""

import asyncio

from hpc_dynamo.engines import Command, Placement, for_worker, in_container, is_mpi_step
from hpc_dynamo.engines.contract import python_executable
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.launch import mpi_step
from hpc_dynamo.process.child import clean_environment
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Worker

MARK = "hpc-dynamo-world"
PROGRAM = f"from mpi4py import MPI; print('{MARK}', MPI.COMM_WORLD.size, flush=True)"


async def mpi_step_error(attempt: Attempt) -> str:
    """Of the first such worker of our part of the job; empty where there is none, or it is well at
    the second try: one that crashes once is started again in a run, too."""
    config, plan = attempt.config(), attempt.plan()
    worlds = (w for w in plan.group_plans[0].workers if is_mpi_step(config, w))
    worker = next(worlds, None)
    if worker is None:
        return ""
    limit_s = config.cluster.bootstrap.mpi_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            return await _tried(attempt, worker) and await _tried(attempt, worker)
    except TimeoutError:
        return f"the ranks of worker {worker.rank} did not meet within {limit_s:.0f} s"
    except (HpcDynamoError, OSError) as e:
        return f"the ranks of worker {worker.rank} cannot be started: {e}"


async def _tried(attempt: Attempt, worker: Worker) -> str:
    own, ranks = for_worker(attempt.config(), worker), sum(len(s.gpus) for s in worker.shards)
    bare = Command((python_executable(own), "-c", PROGRAM), own.engine.env)
    place = Placement(worker, address="", ports=(), gpus=(), token="", log_folder=str(attempt.logs))
    command = in_container(own, place, bare)
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
        said = (await process.communicate())[0].decode(errors="replace")
    finally:
        if process.returncode is None:
            process.kill()  # srun's end is that of the step
            await process.wait()
            await asyncio.to_thread(step.signal, "KILL")
    if said.count(f"{MARK} {ranks}\n") == ranks:
        return ""
    return f"the {ranks} ranks of worker {worker.rank} did not meet: {mpi_step.last_message(said)}"
