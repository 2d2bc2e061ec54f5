"""Node 0's second part: hear all nodes, have them meet and measure, write the report."""

import asyncio
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from hpc_dynamo.doctor import analysis
from hpc_dynamo.doctor.checks import FULL, examine
from hpc_dynamo.doctor.mpi_step import world_error
from hpc_dynamo.doctor.records import Examined, Link, Meet, Message, Met, Over, Pull, Report
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.wire import ControlServer, MessageCodec

CODEC: MessageCodec[Message] = MessageCodec(Message)  # type: ignore[arg-type]  # a union is no type[T]
MEET_S, ROUND_S = 30.0, 45.0
AGAIN_S = 120.0  # after which nothing more is measured again: of a dead switch there is no end
T = TypeVar("T", Examined, Met, Link)


class Meeting(msgspec.Struct, frozen=True, kw_only=True):
    """Where the nodes meet, and a word by which they know the same folder."""

    endpoint: str
    token: str = msgspec.field(default_factory=lambda: secrets.token_hex(8))


def control(attempt: Attempt) -> Path:
    return attempt.path / "doctor-meeting.json"


def report_file(attempt: Attempt) -> Path:
    return attempt.path / "doctor.json"


def token(attempt: Attempt) -> str:
    """The word in the run folder as this node sees it."""
    return msgspec.json.decode(control(attempt).read_bytes(), type=Meeting).token


class Lead:
    """Every wait here has a deadline: who is late or dead is a finding."""

    def __init__(
        self, attempt: Attempt, hosts: Sequence[str], server: ControlServer[Message]
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
            came = await self._hear(Examined, everyone, wait_s)
            nodes = [came[node] for node in sorted(came)]
            await self._tell(came, Meet(nodes=tuple(nodes)))
            met = await self._hear(Met, came, MEET_S)
            world = await world_error(self._attempt)
            links = await self._again(nodes, await self._links(nodes))
        finally:
            await self._tell(self._peers, Over())
            self._server.close()
        findings = analysis.absent(self._hosts, nodes, self._attempt.logs)
        findings += [f for node in nodes for f in examine(node.facts, FULL)]
        findings += analysis.apart(self._hosts, nodes, token(self._attempt))
        findings += analysis.meetings(self._hosts, met.values())
        findings += analysis.worlds(self._hosts[0], world)
        findings += analysis.links(self._hosts, links)
        report = Report(
            hosts=self._hosts,
            nodes=tuple(msgspec.structs.replace(n, metadata=()) for n in nodes),
            links=tuple(links),
            findings=tuple(findings),
            seconds=time.monotonic() - began,
        )
        write_json(report_file(self._attempt), report)

    async def _links(self, nodes: Sequence[Examined]) -> list[Link]:
        """All pairs, in rounds."""
        able, links = [node for node in nodes if node.metadata], list[Link]()
        for shift in range(1, len(able)):
            pairs = {n.node: able[(i + shift) % len(able)] for i, n in enumerate(able)}
            links += await self._round(pairs)
        return links

    async def _again(self, nodes: Sequence[Examined], links: Sequence[Link]) -> list[Link]:
        """Those in doubt more than once, each alone: what shares cores or a switch is slow
        together. What is usual changes with them, and so may who is in doubt."""
        known = {(each.node, each.peer): each for each in links}
        by_node, until = {node.node: node for node in nodes}, time.monotonic() + AGAIN_S
        while (before := self._doubt(known.values())) and time.monotonic() < until:
            (now,) = await self._round({before.node: by_node[before.peer]})
            known[before.node, before.peer] = analysis.better(before, now)
        return list(known.values())

    def _doubt(self, links: Collection[Link]) -> Link | None:
        """The next link to be measured again, of nodes that answer."""
        doubts = analysis.doubtful(links)
        return next((d for d in doubts if not {d.node, d.peer} & self._silent), None)

    async def _round(self, pairs: dict[int, Examined]) -> list[Link]:
        """Each node pulls from its peer. Who once was silent is asked no more."""
        pairs = {n: peer for n, peer in pairs.items() if not {n, peer.node} & self._silent}
        for node, peer in pairs.items():
            await self._tell([node], Pull(peer=peer.node, metadata=peer.metadata))
        said = await self._hear(Link, pairs, ROUND_S)
        missing = pairs.keys() - said.keys()
        self._silent |= missing
        error = f"no answer in {ROUND_S:.0f} s"
        lost = [Link(node=n, peer=pairs[n].node, error=error) for n in missing]
        return [*said.values(), *lost]

    async def _tell(self, nodes: Iterable[int], message: Message) -> None:
        for node in nodes:
            await self._server.send(self._peers[node], message)

    async def _hear(self, kind: type[T], nodes: Iterable[int], timeout_s: float) -> dict[int, T]:
        """What came of these in time, by node."""
        heard, wanted = dict[int, T](), set(nodes)
        try:
            async with asyncio.timeout(timeout_s):
                while wanted - heard.keys():
                    peer, message = await self._server.receive()
                    if isinstance(message, Examined):
                        self._peers[message.node] = peer
                    if isinstance(message, kind):
                        heard[message.node] = message
        except TimeoutError:
            pass  # who is missing is a finding
        return {node: heard[node] for node in heard if node in wanted}
