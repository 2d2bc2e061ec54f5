"""Collect the node records of all agents, by TCP or by MPI."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from msgspec.structs import replace

from hpc_dynamo.bootstrap import mpi, tcp
from hpc_dynamo.config import Bootstrap
from hpc_dynamo.errors import BootstrapError, WireError
from hpc_dynamo.messages import NodeRecord, Roster
from hpc_dynamo.run import Attempt, write_json

LATE_HINT = (
    "cluster.bootstrap.timeout_s=300 if nodes start slowly; otherwise check that the node sees "
    "the run folder and can reach node 0"
)

log = logging.getLogger(__name__)


async def exchange_addresses(
    me: NodeRecord,
    hosts: Sequence[str],
    attempt: Attempt,
    settings: Bootstrap,
    step: mpi.MpiStep | None = None,
    spare_nodes: int = 0,
) -> Roster:
    """Return the roster of all agents, one per host; agent 0 also writes it to the run folder.

    Agent 0 starts the MPI `step`, if there is one, and uses TCP if it fails. Up to `spare_nodes`
    agents may be missing.
    Raises BootstrapError that names the rank, node and log of every agent that is missing.
    """
    needed = len(hosts) - spare_nodes
    began = time.monotonic()
    me = replace(me, restart_count=tcp.restart_count())
    write_json(attempt.node_file(me.node), me)
    try:
        found = await _collect(me, len(hosts), needed, attempt, settings, step)
    except (BootstrapError, WireError) as e:
        missing = _missing(hosts, attempt, None)
        raise BootstrapError(f"{e.message}; {missing}", hint=e.hint) from e
    seconds = time.monotonic() - began
    if len(found.nodes) < needed:
        came = f"{len(found.nodes)} of {len(hosts)} agents came within {seconds:.0f} s"
        error = f"{came}; {_missing(hosts, attempt, found.nodes)}"
        late = BootstrapError(error, hint=LATE_HINT)
        present = {record.node for record in found.nodes}
        late.bad_hosts = tuple(host for node, host in enumerate(hosts) if node not in present)
        raise late
    roster = replace(found, seconds=seconds, restart_count=tcp.restart_count())
    log.info("bootstrap: %d agents by %s in %.3f s", len(roster.nodes), roster.method, seconds)
    if me.node == 0:
        write_json(attempt.roster_file, roster)
    return roster


async def _collect(
    me: NodeRecord,
    count: int,
    needed: int,
    attempt: Attempt,
    settings: Bootstrap,
    step: mpi.MpiStep | None,
) -> Roster:
    file, keys = attempt.rendezvous_file, attempt.run.secrets().keys
    if me.node:
        limit_s = 2 * settings.timeout_s + settings.mpi_timeout_s
        by_tcp = tcp.send_record(me, file, keys, limit_s)
        return await _first(by_tcp, mpi.wait_for_roster(me, attempt))
    with tcp.RecordCollector(me, file, keys) as collector:
        collected = collector.collect(count, needed, settings.timeout_s)
        roster = await _decide(collected, step, attempt, count, settings)
        await collector.answer(roster)
    return roster


async def _decide(
    by_tcp: Coroutine[Any, Any, tuple[NodeRecord, ...]],
    step: mpi.MpiStep | None,
    attempt: Attempt,
    count: int,
    settings: Bootstrap,
) -> Roster:
    """Return the roster by MPI, or by TCP if the MPI step fails or hangs.

    Both run at the same time. A step that has not ended some time after all agents have come over
    TCP hangs. This time is longer on a cluster on which the agents themselves took long to come.
    """
    began, expired = time.monotonic(), asyncio.Event()
    records = asyncio.create_task(by_tcp)
    gathered = asyncio.create_task(_by_mpi(step, attempt, expired))
    try:
        await asyncio.wait([records, gathered], return_when=asyncio.FIRST_COMPLETED)
        if not gathered.done() and len(records.result()) == count:
            wait_s = max(settings.mpi_timeout_s, time.monotonic() - began)
            await asyncio.wait([gathered], timeout=wait_s)
        expired.set()
        roster = await gathered
        return roster or Roster(nodes=await records, method="tcp", seconds=0.0)
    finally:
        records.cancel()
        gathered.cancel()
        await asyncio.wait([records, gathered])


async def _by_mpi(
    step: mpi.MpiStep | None, attempt: Attempt, expired: asyncio.Event
) -> Roster | None:
    if step is None:
        return None
    try:
        return await mpi.run_step(step, attempt, expired)
    except (BootstrapError, OSError) as e:
        log.warning("the exchange of addresses by MPI failed, TCP takes over: %s", e)
        return None


async def _first(*ways: Coroutine[Any, Any, Roster]) -> Roster:
    """Return the result of the way that ends first; cancel the others."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


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
