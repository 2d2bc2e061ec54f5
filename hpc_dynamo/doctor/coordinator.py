"""Coordination of the nodes by node 0: collect facts, measure links, write the report."""

import asyncio
import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from hpc_dynamo.doctor import analysis
from hpc_dynamo.doctor.checks import ALL_CHECKS, run_checks
from hpc_dynamo.doctor.mpi_step import MPI_LIMIT_S, mpi_step_error
from hpc_dynamo.doctor.records import (
    ConnectPeers,
    DoctorDone,
    DoctorMessage,
    DoctorReport,
    Finding,
    LinkResult,
    MeasureLink,
    NodeReady,
    PeersConnected,
)
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.wire import ControlServer, MessageCodec

CODEC: MessageCodec[DoctorMessage] = MessageCodec(DoctorMessage)  # type: ignore[arg-type]  # a union
CONNECT_TIMEOUT_S, ROUND_TIMEOUT_S = 30.0, 45.0
REMEASURE_BUDGET_S = 120.0  # a dead switch leaves hundreds of doubtful links
T = TypeVar("T", NodeReady, PeersConnected, LinkResult)


class DoctorRendezvous(msgspec.Struct, frozen=True, kw_only=True):
    """File in the run folder: the coordinator's endpoint, and a random token.

    A node that reads another token does not see the same folder.
    """

    endpoint: str
    token: str = msgspec.field(default_factory=lambda: secrets.token_hex(8))


def rendezvous_file(attempt: Attempt) -> Path:
    return attempt.path / "doctor-meeting.json"


def report_file(attempt: Attempt) -> Path:
    return attempt.path / "doctor.json"


def read_token(attempt: Attempt) -> str:
    """Return the token in the run folder as this node sees it."""
    return msgspec.json.decode(rendezvous_file(attempt).read_bytes(), type=DoctorRendezvous).token


class DoctorCoordinator:
    """Directs all nodes. Every wait has a deadline: a node that misses it is a finding."""

    def __init__(
        self, attempt: Attempt, hosts: Sequence[str], server: ControlServer[DoctorMessage]
    ) -> None:
        self._attempt, self._hosts, self._server = attempt, tuple(hosts), server
        self._peers = dict[int, bytes]()  # addresses of the control plane by node
        self._silent = set[int]()

    async def run(self) -> None:
        """Run all checks and write the report. The nodes exit in any case."""
        began, bootstrap = time.monotonic(), self._attempt.config().cluster.bootstrap
        # Nodes may start late and then try MPI.
        timeout_s = bootstrap.timeout_s + MPI_LIMIT_S
        try:
            ready = await self._receive(NodeReady, range(len(self._hosts)), timeout_s)
            nodes = [ready[node] for node in sorted(ready)]
            await self._send(ready, ConnectPeers(nodes=tuple(nodes)))
            connected = await self._receive(PeersConnected, ready, CONNECT_TIMEOUT_S)
            mpi_error = await mpi_step_error(self._attempt)
            links = await self._remeasure(nodes, await self._measure_links(nodes))
        finally:
            await self._send(self._peers, DoctorDone())
            self._server.close()
        findings = self._findings(nodes, connected.values(), mpi_error, links)
        report = DoctorReport(
            hosts=self._hosts,
            nodes=tuple(msgspec.structs.replace(node, metadata=()) for node in nodes),
            links=tuple(links),
            findings=tuple(findings),
            seconds=time.monotonic() - began,
        )
        write_json(report_file(self._attempt), report)

    def _findings(
        self,
        nodes: Sequence[NodeReady],
        connected: Iterable[PeersConnected],
        mpi_error: str,
        links: Sequence[LinkResult],
    ) -> list[Finding]:
        hosts = self._hosts
        return [
            *analysis.missing_nodes(hosts, nodes, self._attempt.logs),
            *(f for node in nodes for f in run_checks(node.facts, ALL_CHECKS)),
            *analysis.separate_run_folders(hosts, nodes, read_token(self._attempt)),
            *analysis.connection_findings(hosts, connected),
            *analysis.mpi_findings(hosts[0], mpi_error),
            *analysis.link_findings(hosts, links),
        ]

    async def _measure_links(self, nodes: Sequence[NodeReady]) -> list[LinkResult]:
        """Measure all pairs in rounds. In each round a node pulls once and is pulled from once."""
        able, links = [node for node in nodes if node.metadata], list[LinkResult]()
        for shift in range(1, len(able)):
            pairs = {n.node: able[(i + shift) % len(able)] for i, n in enumerate(able)}
            links += await self._measure(pairs)
        return links

    async def _remeasure(
        self, nodes: Sequence[NodeReady], links: Sequence[LinkResult]
    ) -> list[LinkResult]:
        """Measure doubtful links again, one at a time: links may share cores or a switch.

        After each, a typical link is measured for comparison, since the load may have changed.

        The results change the typical bandwidth, and with it the doubtful links.
        """
        known = {(link.node, link.peer): link for link in links}
        by_node, until = {node.node: node for node in nodes}, time.monotonic() + REMEASURE_BUDGET_S
        while (before := self._next_doubtful(known.values())) and time.monotonic() < until:
            (now,) = await self._measure({before.node: by_node[before.peer]})
            reference_gb_s = 0.0 if now.error else await self._reference_gb_s(by_node, known)
            known[before.node, before.peer] = analysis.combine_measurements(
                before, now, reference_gb_s
            )
        return list(known.values())

    async def _reference_gb_s(
        self, nodes: Mapping[int, NodeReady], known: Mapping[tuple[int, int], LinkResult]
    ) -> float:
        """Return the present rate of a typical link, 0 if there is none or it failed."""
        usable = [link for pair, link in known.items() if not {*pair} & self._silent]
        if not any(link.gb_s for link in usable):
            return 0.0
        reference = analysis.reference_link(usable)
        (now,) = await self._measure({reference.node: nodes[reference.peer]})
        return now.gb_s

    def _next_doubtful(self, links: Collection[LinkResult]) -> LinkResult | None:
        """Return the next link to measure again, if both its nodes still respond."""
        doubtful = analysis.links_to_remeasure(links)
        return next((d for d in doubtful if not {d.node, d.peer} & self._silent), None)

    async def _measure(self, pairs: dict[int, NodeReady]) -> list[LinkResult]:
        """Let each node pull from its peer. A node that does not respond is not used again."""
        pairs = {n: peer for n, peer in pairs.items() if not {n, peer.node} & self._silent}
        for node, peer in pairs.items():
            await self._send([node], MeasureLink(peer=peer.node, metadata=peer.metadata))
        results = await self._receive(LinkResult, pairs, ROUND_TIMEOUT_S)
        missing = pairs.keys() - results.keys()
        self._silent |= missing
        error = f"no answer in {ROUND_TIMEOUT_S:.0f} s"
        lost = [LinkResult(node=n, peer=pairs[n].node, error=error) for n in missing]
        return [*results.values(), *lost]

    async def _send(self, nodes: Iterable[int], message: DoctorMessage) -> None:
        for node in nodes:
            await self._server.send(self._peers[node], message)

    async def _receive(self, kind: type[T], nodes: Iterable[int], timeout_s: float) -> dict[int, T]:
        """Return the messages of these nodes that arrive in time, by node."""
        received, expected = dict[int, T](), set(nodes)
        try:
            async with asyncio.timeout(timeout_s):
                while expected - received.keys():
                    peer, message = await self._server.receive()
                    if isinstance(message, NodeReady):
                        self._peers[message.node] = peer
                    if isinstance(message, kind):
                        received[message.node] = message
        except TimeoutError:
            pass  # missing nodes become findings
        return {node: received[node] for node in received if node in expected}
