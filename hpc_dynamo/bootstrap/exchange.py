"""Collect the node records of all agents, by TCP or by MPI."""

import logging
import time
from collections.abc import Sequence

from hpc_dynamo.bootstrap import mpi, tcp
from hpc_dynamo.config import Bootstrap, BootstrapMethod
from hpc_dynamo.errors import BootstrapError, WireError
from hpc_dynamo.messages import NodeRecord, Roster
from hpc_dynamo.run import Attempt, write_json

LATE_HINT = (
    "cluster.bootstrap.timeout_s=300 if nodes start slowly; otherwise check that the node sees "
    "the run folder and can reach node 0"
)
MPI_HINT = "cluster.bootstrap.method=tcp works without MPI"

log = logging.getLogger(__name__)


async def exchange_addresses(
    me: NodeRecord, hosts: Sequence[str], attempt: Attempt, settings: Bootstrap
) -> Roster:
    """Return the roster of all agents, one per host; agent 0 also writes it to the run folder.

    Raises BootstrapError that names the rank, node and log of every agent that is missing.
    """
    began = time.monotonic()
    write_json(attempt.node_file(me.node), me)
    try:
        records = await _collect(me, len(hosts), attempt, settings)
    except (BootstrapError, WireError) as e:
        hint = MPI_HINT if settings.method is BootstrapMethod.mpi else e.hint
        raise BootstrapError(f"{e.message}; {_missing(hosts, attempt, None)}", hint=hint) from e
    seconds = time.monotonic() - began
    if len(records) < len(hosts):
        came = f"{len(records)} of {len(hosts)} agents came within {seconds:.0f} s"
        raise BootstrapError(f"{came}; {_missing(hosts, attempt, records)}", hint=LATE_HINT)
    roster = Roster(nodes=records, method=str(settings.method), seconds=seconds)
    log.info("bootstrap: %d agents by %s in %.3f s", len(records), roster.method, seconds)
    if me.node == 0:
        write_json(attempt.roster_file, roster)
    return roster


async def _collect(
    me: NodeRecord, count: int, attempt: Attempt, settings: Bootstrap
) -> tuple[NodeRecord, ...]:
    if settings.method is BootstrapMethod.mpi:
        return await mpi.allgather(me, count, settings.mpi_timeout_s)
    file, keys = attempt.rendezvous_file, attempt.run.secrets().keys
    if me.node == 0:
        return await tcp.collect_records(me, count, file, keys, settings.timeout_s)
    return await tcp.send_record(me, file, keys, settings.timeout_s)


def _missing(hosts: Sequence[str], attempt: Attempt, came: Sequence[NodeRecord] | None) -> str:
    """Name the agents that did not come; if `came` is None, those without a node file.

    An agent writes its node file before it connects, so a file shows that it has started.
    """
    started = {record.node for record in attempt.nodes()}
    present = started if came is None else {record.node for record in came}
    rows = []
    for node in sorted(set(range(len(hosts))) - present):
        how = "started but cannot reach the head" if node in started else "never started"
        rows.append(f"agent {node} on {hosts[node]} {how} (log: {attempt.agent_log(node)})")
    return "missing: " + "; ".join(rows) if rows else "all agents had started"
