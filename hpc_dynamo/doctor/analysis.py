"""Findings that need the results of all nodes: missing nodes, connections and links."""

import statistics
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from msgspec.structs import replace

from hpc_dynamo.doctor.checks import check_clock, fault
from hpc_dynamo.doctor.records import Finding, LinkResult, NodeReady, PeersConnected

SLOW = 0.3  # share of the typical bandwidth; noise stays above it
TIMES_SLOW, TIMES_DEAD = 5, 2  # measurements before a link counts as slow or dead
REACH = "open all TCP ports between the job's nodes, or cluster.interface=… of their own network"
MPI = "srun --mpi=list, cluster.slurm.mpi; mpi4py and an MPI with PMIx in the engine's environment"
LINKS = "UCX_NET_DEVICES and UCX_TLS in engine.env (`ucx_info -d` lists them), cables, ibstat"


def missing_nodes(hosts: Sequence[str], nodes: Sequence[NodeReady], logs: Path) -> list[Finding]:
    """Return a finding for each node that did not report."""
    reported = {node.node for node in nodes}
    fix = f"{logs}, sinfo; check that it sees the run folder and can connect to {hosts[0]}"
    found = fault("node", "it did not report", "no agent can run there", fix)
    return [replace(found, host=h) for i, h in enumerate(hosts) if i not in reported]


def separate_run_folders(
    hosts: Sequence[str], nodes: Sequence[NodeReady], token: str
) -> list[Finding]:
    """Return a finding for each node whose run folder is not the head node's."""
    what = "its run folder is not the head node's"
    why = "no other node sees the files that it writes there"
    found = fault("run folder", what, why, "runs_dir=… on a disk that all nodes share")
    return [replace(found, host=hosts[n.node]) for n in nodes if n.facts.run_token != token]


def connection_findings(hosts: Sequence[str], results: Iterable[PeersConnected]) -> list[Finding]:
    """Return findings for ports that are unreachable and clocks that differ from node 0's."""
    found = []
    for result in results:
        host = hosts[result.node]
        for peer, error in result.unreachable.items():
            what = f"a port of {hosts[peer]} cannot be reached: {error}"
            why = "requests and KV cache between them fail (a firewall?)"
            found.append(replace(fault("ports", what, why, REACH), host=host))
        if clock := check_clock(result.ahead_s):
            found.append(replace(clock, host=host))
    return found


def mpi_findings(host: str, error: str) -> list[Finding]:
    """Return a finding for an MPI step that was tried from `host` and failed with `error`."""
    why = "no worker that runs as MPI ranks can start"
    return [replace(fault("MPI", error, why, MPI), host=host)] if error else []


def link_findings(hosts: Sequence[str], measured: Sequence[LinkResult]) -> list[Finding]:
    """Return findings for dead links and for links far below the typical bandwidth."""
    typical = typical_gb_s(measured)
    return [f for link in measured if (f := _link_finding(hosts, link, typical)) is not None]


def links_to_remeasure(measured: Collection[LinkResult]) -> list[LinkResult]:
    """Return the doubtful links: those with the fewest measurements first, then the slowest."""
    typical = typical_gb_s(measured)
    found = [link for link in measured if link.times < _required_times(link, typical)]
    return sorted(found, key=lambda link: (link.times, link.gb_s))


def _required_times(link: LinkResult, typical: float) -> int:
    if link.error:
        return TIMES_DEAD
    return TIMES_SLOW if _is_slow(link, typical) else 1


def _is_slow(link: LinkResult, typical: float) -> bool:
    """Return True unless one measurement was near the typical rate of all, or of its time.

    On a busy node all links become slower together, which is no property of a link.
    """
    return link.gb_s < typical * SLOW and link.share < SLOW


def reference_link(measured: Iterable[LinkResult]) -> LinkResult:
    """Return the link that doubtful ones are compared with: the slowest that is not below typical.

    Raises ValueError if no link works.
    """
    known = list(measured)
    typical = typical_gb_s(known)
    fit = (link for link in known if not link.error and link.gb_s >= typical)
    return min(fit, key=lambda link: link.gb_s)


def combine_measurements(
    before: LinkResult, now: LinkResult, reference_gb_s: float = 0.0
) -> LinkResult:
    """Return the better of two measurements. A delay of one is no property of the link.

    `reference_gb_s` is the rate of the reference link next to the measurement `now`.
    """
    best = max(now, before, key=lambda link: (not link.error, link.gb_s))
    share = now.gb_s / reference_gb_s if reference_gb_s else 0.0
    return replace(best, times=before.times + 1, share=max(before.share, share))


def typical_gb_s(measured: Iterable[LinkResult]) -> float:
    """Return the median over nodes of each node's best link, 0 without links.

    A bad node slows down the links of other nodes, but not their best ones.
    """
    best = dict[int, float]()
    for link in measured:
        for node in (link.node, link.peer):
            best[node] = max(best.get(node, 0.0), link.gb_s)
    return statistics.median(best.values()) if best else 0.0


def _link_finding(hosts: Sequence[str], link: LinkResult, typical: float) -> Finding | None:
    if link.error:
        how, why = f" is dead: {link.error}", "no KV cache can be pulled from that node"
    elif _is_slow(link, typical):
        over = f" over {link.transport}" if link.transport else ""
        how = f"{over} is slow: {link.gb_s:.3f} GB/s, typical are {typical:.3f}"
        why = "hand-offs over it delay outputs"
    else:
        return None
    tried = f" (measured {link.times} times)" if link.times > 1 else ""
    what = f"the link from {hosts[link.peer]}{how}{tried}"
    return replace(fault("NIXL", what, why, LINKS), host=hosts[link.node])
