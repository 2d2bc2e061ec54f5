"""Node 0's second part: hear all nodes, have them meet and measure, write the report."""

import asyncio
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from hpc_dynamo.doctor import analysis
from hpc_dynamo.doctor.checks import ALL_CHECKS, run_checks
from hpc_dynamo.doctor.mpi_step import mpi_step_error
from hpc_dynamo.doctor.records import (
    ConnectPeers,
    DoctorDone,
    DoctorMessage,
    DoctorReport,
    LinkResult,
    MeasureLink,
    NodeReady,
    PeersConnected,
)
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.wire import ControlServer, MessageCodec

CODEC: MessageCodec[DoctorMessage] = MessageCodec(DoctorMessage)  # type: ignore[arg-type]  # a union is no type[T]
CONNECT_TIMEOUT_S, ROUND_TIMEOUT_S = 30.0, 45.0
REMEASURE_BUDGET_S = (
    120.0  # after which nothing more is measured again: of a dead switch there is no end
)
T = TypeVar("T", NodeReady, PeersConnected, LinkResult)


class DoctorRendezvous(msgspec.Struct, frozen=True, kw_only=True):
    """Where the nodes meet, and a word by which they know the same folder."""

    endpoint: str
    token: str = msgspec.field(default_factory=lambda: secrets.token_hex(8))


def rendezvous_file(attempt: Attempt) -> Path:
    return attempt.path / "doctor-meeting.json"


def report_file(attempt: Attempt) -> Path:
    return attempt.path / "doctor.json"


def read_token(attempt: Attempt) -> str:
    """The word in the run folder as this node sees it."""
    return msgspec.json.decode(rendezvous_file(attempt).read_bytes(), type=DoctorRendezvous).token


class DoctorCoordinator:
    """Every wait here has a deadline: who is late or dead is a finding."""

    def __init__(
        self, attempt: Attempt, hosts: Sequence[str], server: ControlServer[DoctorMessage]
    ) -> None:
        self._attempt, self._hosts, self._server = attempt, tuple(hosts), server
        self._peers = dict[int, bytes]()  # who to answer to, by node
        self._silent = set[int]()

    async def run(self) -> None:
        began, everyone = time.monotonic(), range(len(self._hosts))
        cluster = self._attempt.config().cluster
        # Nodes start late, then try MPI as long as it may take.
        wait_s = cluster.bootstrap.timeout_s + cluster.bootstrap.mpi_timeout_s
        try:
            came = await self._hear(NodeReady, everyone, wait_s)
            nodes = [came[node] for node in sorted(came)]
            await self._tell(came, ConnectPeers(nodes=tuple(nodes)))
            met = await self._hear(PeersConnected, came, CONNECT_TIMEOUT_S)
            world = await mpi_step_error(self._attempt)
            links = await self._again(nodes, await self._links(nodes))
        finally:
            await self._tell(self._peers, DoctorDone())
            self._server.close()
        findings = analysis.missing_nodes(self._hosts, nodes, self._attempt.logs)
        findings += [f for node in nodes for f in run_checks(node.facts, ALL_CHECKS)]
        findings += analysis.separate_run_folders(self._hosts, nodes, read_token(self._attempt))
        findings += analysis.connection_findings(self._hosts, met.values())
        findings += analysis.mpi_findings(self._hosts[0], world)
        findings += analysis.link_findings(self._hosts, links)
        report = DoctorReport(
            hosts=self._hosts,
            nodes=tuple(msgspec.structs.replace(n, metadata=()) for n in nodes),
            links=tuple(links),
            findings=tuple(findings),
            seconds=time.monotonic() - began,
        )
        write_json(report_file(self._attempt), report)

    async def _links(self, nodes: Sequence[NodeReady]) -> list[LinkResult]:
        """All pairs, in rounds."""
        able, links = [node for node in nodes if node.metadata], list[LinkResult]()
        for shift in range(1, len(able)):
            pairs = {n.node: able[(i + shift) % len(able)] for i, n in enumerate(able)}
            links += await self._round(pairs)
        return links

    async def _again(
        self, nodes: Sequence[NodeReady], links: Sequence[LinkResult]
    ) -> list[LinkResult]:
        """Those in doubt more than once, each alone: what shares cores or a switch is slow
        together. What is usual changes with them, and so may who is in doubt."""
        known = {(each.node, each.peer): each for each in links}
        by_node, until = {node.node: node for node in nodes}, time.monotonic() + REMEASURE_BUDGET_S
        while (before := self._doubt(known.values())) and time.monotonic() < until:
            (now,) = await self._round({before.node: by_node[before.peer]})
            known[before.node, before.peer] = analysis.combine_measurements(before, now)
        return list(known.values())

    def _doubt(self, links: Collection[LinkResult]) -> LinkResult | None:
        """The next link to be measured again, of nodes that answer."""
        doubts = analysis.links_to_remeasure(links)
        return next((d for d in doubts if not {d.node, d.peer} & self._silent), None)

    async def _round(self, pairs: dict[int, NodeReady]) -> list[LinkResult]:
        """Each node pulls from its peer. Who once was silent is asked no more."""
        pairs = {n: peer for n, peer in pairs.items() if not {n, peer.node} & self._silent}
        for node, peer in pairs.items():
            await self._tell([node], MeasureLink(peer=peer.node, metadata=peer.metadata))
        said = await self._hear(LinkResult, pairs, ROUND_TIMEOUT_S)
        missing = pairs.keys() - said.keys()
        self._silent |= missing
        error = f"no answer in {ROUND_TIMEOUT_S:.0f} s"
        lost = [LinkResult(node=n, peer=pairs[n].node, error=error) for n in missing]
        return [*said.values(), *lost]

    async def _tell(self, nodes: Iterable[int], message: DoctorMessage) -> None:
        for node in nodes:
            await self._server.send(self._peers[node], message)

    async def _hear(self, kind: type[T], nodes: Iterable[int], timeout_s: float) -> dict[int, T]:
        """What came of these in time, by node."""
        heard, wanted = dict[int, T](), set(nodes)
        try:
            async with asyncio.timeout(timeout_s):
                while wanted - heard.keys():
                    peer, message = await self._server.receive()
                    if isinstance(message, NodeReady):
                        self._peers[message.node] = peer
                    if isinstance(message, kind):
                        heard[message.node] = message
        except TimeoutError:
            pass  # who is missing is a finding
        return {node: heard[node] for node in heard if node in wanted}
