"""Exchange by one MPI allgather in a short-lived child process, so that no other process uses MPI.

The child runs `main`. It reads a record as JSON from standard input and writes the records of
all ranks to standard output, as a JSON array.
"""

import asyncio
import importlib.util
import os
import sys

import msgspec

from hpc_dynamo.errors import BootstrapError
from hpc_dynamo.messages import NodeRecord

# Set by `srun --mpi=pmix`, by `--mpi=pmi2` or cray_shasta, and by mpirun.
RANK_VARIABLES = ("PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
ERROR_CHARS = 800


def available() -> bool:
    """Return True if this task was started as an MPI rank and mpi4py is installed."""
    started = any(name in os.environ for name in RANK_VARIABLES)
    return started and importlib.util.find_spec("mpi4py") is not None


async def allgather(me: NodeRecord, count: int, timeout_s: float) -> tuple[NodeRecord, ...]:
    """Return the records of all `count` agents, by node.

    Raises BootstrapError with the output of MPI if it fails or takes longer than `timeout_s`, or
    if its world has another size. A library that does not support srun's PMI makes a world of
    each rank.
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
        error = err.decode(errors="replace").strip()[-ERROR_CHARS:]
        raise BootstrapError(f"MPI: {error}")
    # MPI libraries may also print to standard output, before the records.
    records = msgspec.json.decode(out.strip().splitlines()[-1], type=list[NodeRecord])
    if len(records) != count:
        raise BootstrapError(f"MPI: a world of {len(records)} ranks where {count} were started")
    return tuple(sorted(records, key=lambda r: r.node))


def main() -> None:
    # Importing this initialises MPI, so it must not happen in another process.
    from mpi4py import MPI

    records = MPI.COMM_WORLD.allgather(sys.stdin.buffer.read())
    sys.stdout.write("[" + ",".join(record.decode() for record in records) + "]\n")
