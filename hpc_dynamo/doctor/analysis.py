"""What all nodes together show: who did not come, who cannot be reached, which links are slow."""

import statistics
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from msgspec.structs import replace

from hpc_dynamo.doctor.checks import check_clock, fault
from hpc_dynamo.doctor.records import Finding, LinkResult, NodeReady, PeersConnected

SLOW = 0.3  # of the usual link; noise stays above it
TIMES_SLOW, TIMES_DEAD = 3, 2  # that a link is measured before it is held to be so
REACH = "open all TCP ports between the job's nodes, or cluster.interface=… of their own network"
WORLD = "srun --mpi=list, cluster.slurm.mpi; mpi4py and an MPI with PMIx beside the engine"
LINKS = "UCX_NET_DEVICES and UCX_TLS in engine.env (`ucx_info -d` lists them), cables, ibstat"


def missing_nodes(hosts: Sequence[str], nodes: Sequence[NodeReady], logs: Path) -> list[Finding]:
    """Nodes that were never heard of."""
    came = {node.node for node in nodes}
    fix = f"{logs}, sinfo; do they see the run folder, and may they reach {hosts[0]}?"
    what, why = "it did not report", "no agent can run there"
    found = fault("node", what, why, fix)
    return [replace(found, host=h) for i, h in enumerate(hosts) if i not in came]


def separate_run_folders(
    hosts: Sequence[str], nodes: Sequence[NodeReady], token: str
) -> list[Finding]:
    """Nodes whose run folder is another than the head's."""
    what = "its run folder is not the head node's"
    why = "what it writes there nobody else finds"
    found = fault("run folder", what, why, "runs_dir=… on a disk that all nodes share")
    return [replace(found, host=hosts[n.node]) for n in nodes if n.facts.run_token != token]


def connection_findings(hosts: Sequence[str], met: Iterable[PeersConnected]) -> list[Finding]:
    """Ports that cannot be reached, clocks that differ from the head node's."""
    found = []
    for each in met:
        host = hosts[each.node]
        for peer, error in each.unreachable.items():
            what = f"a port of {hosts[peer]} cannot be reached: {error}"
            why = "requests and KV cache between them fail (a firewall?)"
            found.append(replace(fault("ports", what, why, REACH), host=host))
        if clock := check_clock(each.ahead_s):
            found.append(replace(clock, host=host))
    return found


def mpi_findings(host: str, error: str) -> list[Finding]:
    """Workers whose ranks are one MPI world, of which one was tried from `host`."""
    why = "no worker whose ranks are one MPI world starts"
    found = fault("MPI", error, why, WORLD)
    return [replace(found, host=host)] if error else []


def link_findings(hosts: Sequence[str], measured: Sequence[LinkResult]) -> list[Finding]:
    """Dead links, and those far below what most nodes reach."""
    usual = typical_gb_s(measured)
    return [f for each in measured if (f := _link(hosts, each, usual)) is not None]


def links_to_remeasure(measured: Collection[LinkResult]) -> list[LinkResult]:
    """Links to be measured again, those first that least was tried for, then the worst."""
    least = typical_gb_s(measured) * SLOW
    found = [link for link in measured if link.times < _times(link, least)]
    return sorted(found, key=lambda link: (link.times, link.gb_s))


def _times(link: LinkResult, least: float) -> int:
    if link.error:
        return TIMES_DEAD
    return TIMES_SLOW if link.gb_s < least else 1


def combine_measurements(before: LinkResult, now: LinkResult) -> LinkResult:
    """Of two measurements of a link: what holds one up says nothing of it."""
    best = max(now, before, key=lambda link: (not link.error, link.gb_s))
    return replace(best, times=before.times + 1)


def typical_gb_s(measured: Iterable[LinkResult]) -> float:
    """The median over nodes of each one's best link: one bad node spoils more than its own."""
    best = dict[int, float]()
    for each in measured:
        for node in (each.node, each.peer):
            best[node] = max(best.get(node, 0.0), each.gb_s)
    return statistics.median(best.values()) if best else 0.0


def _link(hosts: Sequence[str], each: LinkResult, usual: float) -> Finding | None:
    by = f" over {each.transport}" if each.transport else ""
    if each.error:
        how, why = f" is dead: {each.error}", "KV cache from that node cannot be had"
    elif each.gb_s < usual * SLOW:
        how = f"{by} is slow: {each.gb_s:.3f} GB/s where {usual:.3f} is usual"
        why = "hand-overs through it hold up answers"
    else:
        return None
    tried = f" (measured {each.times} times)" if each.times > 1 else ""
    what = f"the link from {hosts[each.peer]}{how}{tried}"
    return replace(fault("NIXL", what, why, LINKS), host=hosts[each.node])
