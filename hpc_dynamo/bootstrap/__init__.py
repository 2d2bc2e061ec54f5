"""Addresses of all agents: over TCP, or by an MPI allgather where that is asked for."""

import logging
import time
from collections.abc import Sequence

from hpc_dynamo.bootstrap import mpi, tcp
from hpc_dynamo.config import Bootstrap, BootstrapMethod
from hpc_dynamo.errors import BootstrapError, WireError
from hpc_dynamo.messages import NodeRecord, Roster
from hpc_dynamo.run import Attempt, write_json

log = logging.getLogger(__name__)


async def exchange_addresses(
    me: NodeRecord, hosts: Sequence[str], attempt: Attempt, settings: Bootstrap
) -> Roster:
    """The roster of all `len(hosts)` agents, also written to the run folder by agent 0.

    Logs which way was taken and how long it took. Raises BootstrapError naming every rank
    that did not come, its node and its log.
    """
    began = time.monotonic()
    write_json(attempt.node_file(me.node), me)
    try:
        method, records = await _gather(me, len(hosts), attempt, settings)
    except (BootstrapError, WireError) as e:
        hint = _WITHOUT_MPI if settings.method is BootstrapMethod.mpi else e.hint
        raise BootstrapError(f"{e.message}; {_absent(hosts, attempt, None)}", hint=hint) from e
    if len(records) < len(hosts):
        waited = time.monotonic() - began
        came = f"{len(records)} of {len(hosts)} agents came within {waited:.0f} s"
        raise BootstrapError(f"{came}; {_absent(hosts, attempt, records)}", hint=_HINT)
    roster = Roster(nodes=records, method=method, seconds=time.monotonic() - began)
    log.info("bootstrap: %d agents by %s in %.3f s", len(records), method, roster.seconds)
    if me.node == 0:
        write_json(attempt.roster_file, roster)
    return roster


_HINT = (
    "cluster.bootstrap.timeout_s=300 where nodes start slowly; otherwise look whether the node "
    "sees the run folder and may reach node 0"
)

_WITHOUT_MPI = "cluster.bootstrap.method=tcp needs no MPI"


async def _gather(
    me: NodeRecord, count: int, attempt: Attempt, settings: Bootstrap
) -> tuple[str, tuple[NodeRecord, ...]]:
    if settings.method is BootstrapMethod.mpi:
        return "mpi", await mpi.allgather(me, count, settings.mpi_timeout_s)
    keys = attempt.run.secrets().keys
    if me.node == 0:
        wait = settings.timeout_s
        return "tcp", await tcp.collect_records(me, count, attempt.rendezvous_file, keys, wait)
    return "tcp", await tcp.send_record(me, attempt.rendezvous_file, keys, settings.timeout_s)


def _absent(hosts: Sequence[str], attempt: Attempt, came: Sequence[NodeRecord] | None) -> str:
    """Who is missing. Agents leave a file before they try, so silence has two kinds."""
    started = {record.node: record for record in attempt.nodes()}
    present = set(started) if came is None else {record.node for record in came}
    rows = []
    for node in sorted(set(range(len(hosts))) - present):
        how = "started but cannot reach the head" if node in started else "never started"
        rows.append(f"agent {node} on {hosts[node]} {how} (log: {attempt.agent_log(node)})")
    return "missing: " + "; ".join(rows) if rows else "all agents had started"
