"""One allgather in a short-lived child: no long-lived process ever holds MPI.

The child runs `main`: a record as JSON on standard input,
everybody's as a JSON array on standard output, in the order of MPI ranks.
"""

import asyncio
import importlib.util
import os
import sys

import msgspec

from hpc_dynamo.errors import BootstrapError
from hpc_dynamo.messages import NodeRecord

# Set by `srun --mpi=pmix` and `--mpi=pmi2` (or cray_shasta), and by mpirun.
WORLD = ("PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")


def available() -> bool:
    """True in a task that was started as an MPI rank, with mpi4py at hand."""
    started = any(name in os.environ for name in WORLD)
    return started and importlib.util.find_spec("mpi4py") is not None


async def allgather(me: NodeRecord, count: int, timeout_s: float) -> tuple[NodeRecord, ...]:
    """The records of all `count` agents.

    Raises BootstrapError with what MPI printed, after `timeout_s`, or where this MPI found
    another world: a library that does not speak srun's PMI makes one of each rank alone.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"from {__name__} import main; main()"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(msgspec.json.encode(me))
    except TimeoutError as e:
        raise BootstrapError(f"MPI: no allgather within {timeout_s:.0f} s") from e
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise BootstrapError(f"MPI: {err.decode(errors='replace').strip()[-800:]}")
    # MPI libraries may print to standard output too; ours is the last line.
    records = msgspec.json.decode(out.strip().splitlines()[-1], type=list[NodeRecord])
    if len(records) != count:
        raise BootstrapError(f"MPI: a world of {len(records)} ranks where {count} were started")
    return tuple(sorted(records, key=lambda r: r.node))


def main() -> None:
    from mpi4py import MPI  # here alone: importing it initialises MPI

    everyone = MPI.COMM_WORLD.allgather(sys.stdin.buffer.read())
    sys.stdout.write("[" + ",".join(record.decode() for record in everyone) + "]\n")
