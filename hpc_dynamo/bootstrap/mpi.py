"""Exchange by one MPI allgather in a short Slurm step, so that no other process uses MPI.

Node 0 starts the step, with one rank per node. A crash in it ends nothing else. Each rank runs
`main`: it reads the record that its agent wrote, gathers all of them and writes the roster for its
agent. The roster of node 0 decides: rank 0 writes it first, the other ranks only after a barrier,
and node 0 forbids it when it uses TCP instead. So all agents take the same roster.

    python -c "from hpc_dynamo.bootstrap.mpi import main; main()" ATTEMPT HOST,HOST…
"""

import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hpc_dynamo.bootstrap.tcp import POLL_S, restart_count
from hpc_dynamo.errors import BootstrapError
from hpc_dynamo.messages import NodeRecord, Roster
from hpc_dynamo.run import Attempt, read_json, write_json

ERROR_CHARS = 800
FORBIDDEN = b"null"  # roster of node 0 if it uses TCP


@dataclass(frozen=True)
class MpiStep:
    """Command and environment that start `main` as one MPI rank on every node."""

    argv: Sequence[str]
    env: Mapping[str, str]


def rank_command(attempt: Attempt, hosts: Sequence[str]) -> tuple[str, ...]:
    """Return the command of each rank."""
    program = f"from {__name__} import main; main()"
    return (sys.executable, "-c", program, str(attempt.path), ",".join(hosts))


async def run_step(step: MpiStep, attempt: Attempt, expired: asyncio.Event) -> Roster:
    """Run the step and return the roster. Called by the agent of node 0.

    Raises BootstrapError with the output of MPI if it fails or has not ended when `expired` is set,
    or if its world has another size. A library that does not support srun's PMI makes a world of
    each rank.
    """
    file = attempt.mpi_roster_file(0)
    file.unlink(missing_ok=True)  # left by the job before its requeue
    process = await asyncio.create_subprocess_exec(
        *step.argv,
        env=step.env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    ended = asyncio.create_task(process.communicate())
    began = time.monotonic()
    while not (ended.done() or expired.is_set() or file.exists()):
        await asyncio.wait([ended], timeout=POLL_S)
    error = f"no allgather within {time.monotonic() - began:.1f} s"
    if ended.done():
        error = ended.result()[0].decode(errors="replace").strip()
    if roster := _decide(file):
        # The step ends by itself; if it crashes now, that is without effect.
        _background.add(ended)
        ended.add_done_callback(_background.discard)
        return roster
    if process.returncode is None:
        process.terminate()  # srun ends its tasks
    ended.cancel()
    raise BootstrapError(f"MPI: {error[-ERROR_CHARS:] or 'the ranks wrote no roster'}")


_background = set[asyncio.Task[tuple[bytes, bytes]]]()


def _decide(file: Path) -> Roster | None:
    """Return the roster that rank 0 has written, or forbid rank 0 to write one."""
    try:
        with file.open("xb") as forbidden:
            forbidden.write(FORBIDDEN)
    except FileExistsError:
        return read_json(file, Roster)
    return None


async def wait_for_roster(me: NodeRecord, attempt: Attempt) -> Roster:
    """Return the roster that the rank of this node has written, or node 0 (not for node 0)."""
    files = (attempt.mpi_roster_file(me.node), attempt.roster_file)
    while True:
        for file in files:
            roster = read_json(file, Roster)
            if roster and roster.restart_count == restart_count():
                return roster
        await asyncio.sleep(POLL_S)


def main() -> None:
    """Run one rank."""
    attempt, hosts = Attempt(Path(sys.argv[1])), sys.argv[2].split(",")
    began, me = time.monotonic(), _own_record(attempt, _node(hosts))
    # Importing this initialises MPI, so it must not happen in another process.
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.size != len(hosts):
        sys.exit(f"a world of {world.size} ranks where {len(hosts)} were started")
    found = [msgspec.json.decode(data, type=NodeRecord) for data in world.allgather(me)]
    records = tuple(sorted(found, key=lambda record: record.node))
    seconds = time.monotonic() - began
    roster = Roster(nodes=records, method="mpi", seconds=seconds, restart_count=restart_count())
    if world.rank == 0:
        _write_once(attempt.mpi_roster_file(0), roster)
    world.Barrier()
    if world.rank:
        write_json(attempt.mpi_roster_file(_node(hosts)), roster)


def _node(hosts: Sequence[str]) -> int:
    """Return the node of this rank. mpirun starts several ranks on one host."""
    name = os.environ.get("SLURMD_NODENAME", "")
    return hosts.index(name) if name in hosts else int(os.environ["OMPI_COMM_WORLD_RANK"])


def _own_record(attempt: Attempt, node: int) -> bytes:
    """Wait for the record of this node's agent; the step has a time limit. Return it encoded."""
    while True:
        record = read_json(attempt.node_file(node), NodeRecord)
        if record and record.restart_count == restart_count():
            return msgspec.json.encode(record)
        time.sleep(POLL_S)


def _write_once(file: Path, roster: Roster) -> None:
    """Write the file unless it exists, in one step. Raises FileExistsError."""
    temporary = file.with_name(f".{file.name}")
    write_json(temporary, roster)
    try:
        os.link(temporary, file)
    finally:
        temporary.unlink()
