"""Time of the exchange of addresses at the start of a job, by MPI and over TCP.

    python -m benchmarks.bootstrap              50 exchanges each on a test cluster, as root
    python -m benchmarks.bootstrap --busy 4     the same on a loaded machine

One job with an agent's process on each node makes all exchanges, by turns with an MPI step and only
over TCP. Each exchange has an attempt of its own and is that of a real start: the MPI step begins
at the same time as TCP, which takes over if the step crashes or hangs. The time is that of node 0,
from its call to the roster of all nodes; the start of the agents themselves is not part of it.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from benchmarks.common.machine import cpu_model
from hpc_dynamo.bootstrap import MpiStep, exchange_addresses, rank_command
from hpc_dynamo.bootstrap.address import job_address
from hpc_dynamo.config import Bootstrap, Cluster, Config
from hpc_dynamo.launch.bootstrap_step import step_command
from hpc_dynamo.launch.node import node_index_and_hosts
from hpc_dynamo.messages import NodeRecord, Roster
from hpc_dynamo.run import Attempt, Run, Secrets, new_token
from hpc_dynamo.topology import Plan
from hpc_dynamo.wire import new_keys
from tests.cluster.slurm import SlurmCluster, Spec

METHODS = ("mpi", "tcp")
TIMEOUT_S = 60.0
JOB_LIMIT_S = 20.0  # for one exchange, on average


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=50, help="exchanges by each method (50)")
    parser.add_argument("--nodes", type=int, default=3, help="nodes of the test cluster (3)")
    parser.add_argument("--busy", type=int, default=0, help="busy loops on the machine (0)")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        run_node(args.inside, args.starts)
        return
    with SlurmCluster(Spec("boot", nodes=args.nodes)) as cluster, busy_loops(args.busy):
        folder = Path(tempfile.mkdtemp(dir=cluster.shared))
        program = (sys.executable, "-m", "benchmarks.bootstrap", "--starts", str(args.starts))
        step = ("srun", f"--nodes={args.nodes}", "--ntasks-per-node=1", "--mpi=none", "--quiet")
        subprocess.run(
            [*step, *program, "--inside", str(folder)],
            env={**os.environ, **cluster.env, "PYTHONPATH": os.getcwd()},
            timeout=JOB_LIMIT_S * 2 * args.starts,
            check=True,
        )
        show(folder, args.nodes, args.busy)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep CPUs busy while the context is open."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run_node(folder: Path, starts: int) -> None:
    """Make all exchanges as the agent of this node. Node 0 makes the run folder."""
    index, hosts = node_index_and_hosts(int(os.environ["SLURM_NNODES"]))
    if index == 0:
        make_attempts(folder, 2 * starts, len(hosts))
    while not (folder / "ready").exists():
        time.sleep(0.1)
    for number, attempt in enumerate(Run(folder / "run").attempts()):
        asyncio.run(exchange(attempt, index, hosts, METHODS[number % 2]))


def make_attempts(folder: Path, count: int, nodes: int) -> None:
    public, private = new_keys()
    run = Run(folder / "run")
    run.create(Secrets(token=new_token(), public=public, private=private))
    for _ in range(count):
        run.new_attempt(Config(), Plan(nodes, 0, ()))
    (folder / "ready").touch()


async def exchange(attempt: Attempt, index: int, hosts: Sequence[str], method: str) -> Roster:
    me = NodeRecord(
        node=index,
        host=socket.gethostname(),
        address=job_address(None, hosts),
        pid=os.getpid(),
        log=str(attempt.agent_log(index)),
    )
    me = replace(me, control_endpoint=f"tcp://{me.address}:1" if index == 0 else "")
    step = None
    if method == "mpi" and index == 0:
        step = MpiStep(*step_command(Cluster(), hosts, rank_command(attempt, hosts)))
    settings = Bootstrap(timeout_s=TIMEOUT_S)
    return await exchange_addresses(me, hosts, attempt, settings, step)


def show(folder: Path, nodes: int, busy: int) -> None:
    """Print the times of all exchanges."""
    title = f"exchange of addresses, {nodes} nodes, {os.cpu_count()} CPUs, {busy} busy loops"
    columns = ("started with", "exchanges", "by MPI", "over TCP", "median", "95 %", "longest")
    table = Table(*columns, title=title, caption=cpu_model())
    rosters = [attempt.roster() for attempt in Run(folder / "run").attempts()]
    for number, method in enumerate(METHODS):
        found = [roster for roster in rosters[number::2] if roster]
        times = sorted(roster.seconds for roster in found)
        by_mpi = sum(roster.method == "mpi" for roster in found)
        seconds = (statistics.median(times), times[int(0.95 * (len(times) - 1))], times[-1])
        counts = (len(found), by_mpi, len(found) - by_mpi)
        table.add_row(method, *map(str, counts), *(f"{value:.2f} s" for value in seconds))
    Console().print(table)


if __name__ == "__main__":
    main()
