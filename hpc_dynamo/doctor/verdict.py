"""What all nodes together show: who did not come, who cannot be reached, which links are slow."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec.structs import replace

from hpc_dynamo.doctor.checks import clock_off, fault
from hpc_dynamo.doctor.records import Examined, Finding, Link, Met

SLOW = 0.3  # of the usual link; noise stays above it
REACH = "open all TCP ports between the job's nodes, or cluster.interface=… of their own network"
LINKS = "UCX_NET_DEVICES and UCX_TLS in engine.env (`ucx_info -d` lists them), cables, ibstat"


def absent(hosts: Sequence[str], nodes: Sequence[Examined], logs: Path) -> list[Finding]:
    """Nodes that were never heard of."""
    came = {node.node for node in nodes}
    fix = f"{logs}, sinfo; do they see the run folder, and may they reach {hosts[0]}?"
    what, why = "it did not report", "no agent can run there"
    found = fault("node", what, why, fix)
    return [replace(found, host=h) for i, h in enumerate(hosts) if i not in came]


def apart(hosts: Sequence[str], nodes: Sequence[Examined], token: str) -> list[Finding]:
    """Nodes whose run folder is another than the head's."""
    what = "its run folder is not the head node's"
    why = "what it writes there nobody else finds"
    found = fault("run folder", what, why, "runs=… on a disk that all nodes share")
    return [replace(found, host=hosts[n.node]) for n in nodes if n.facts.run_token != token]


def meetings(hosts: Sequence[str], met: Iterable[Met]) -> list[Finding]:
    """Ports that cannot be reached, clocks that differ from the head node's."""
    found = []
    for each in met:
        host = hosts[each.node]
        for peer, error in each.unreachable.items():
            what = f"a port of {hosts[peer]} cannot be reached: {error}"
            why = "requests and KV cache between them fail (a firewall?)"
            found.append(replace(fault("ports", what, why, REACH), host=host))
        if clock := clock_off(each.ahead_s):
            found.append(replace(clock, host=host))
    return found


def links(hosts: Sequence[str], measured: Sequence[Link]) -> list[Finding]:
    """Dead links, and those far below what most nodes reach."""
    usual = usual_gb_s(measured)
    return [f for each in measured if (f := _link(hosts, each, usual)) is not None]


def doubtful(measured: Sequence[Link]) -> list[Link]:
    """Links to be measured again alone, the worst first."""
    usual = usual_gb_s(measured)
    slow = [link for link in measured if link.error or link.gb_s < usual * SLOW]
    return sorted(slow, key=lambda link: link.gb_s)


def usual_gb_s(measured: Sequence[Link]) -> float:
    """The median over nodes of each one's best link: one bad node spoils more than its own."""
    best = dict[int, float]()
    for each in measured:
        for node in (each.node, each.peer):
            best[node] = max(best.get(node, 0.0), each.gb_s)
    return statistics.median(best.values()) if best else 0.0


def _link(hosts: Sequence[str], each: Link, usual: float) -> Finding | None:
    host, peer = hosts[each.node], hosts[each.peer]
    if each.error:
        why = "KV cache from that node cannot be had"
        found = fault("NIXL", f"the link from {peer} is dead: {each.error}", why, LINKS)
        return replace(found, host=host)
    if each.gb_s >= usual * SLOW:
        return None
    by = f" over {each.transport}" if each.transport else ""
    what = f"the link from {peer}{by} is slow: {each.gb_s:.3f} GB/s where {usual:.3f} is usual"
    return replace(fault("NIXL", what, "hand-overs through it hold up answers", LINKS), host=host)
