"""Connections of the head to its agents, and how long each has been silent."""

import time
from collections.abc import Iterable

from hpc_dynamo.config import Cluster
from hpc_dynamo.messages import ControlMessage, Heartbeat, WorkerState
from hpc_dynamo.wire import ControlServer
from hpc_dynamo.wire.silence import SilenceWatch

HEARTBEAT = Heartbeat(node=0)
RECONNECT_S = 3.0  # an agent that runs reconnects within this time

Loss = tuple[int, WorkerState, str]  # node, new state of its workers, reason


class AgentLinks:
    """Agents by node. Those of `nodes` are expected to connect.

    An agent whose connection is closed and not opened again has died: it is lost. An agent that
    is only silent may be suspended or cut off. Its workers first get the state `failed`, and after
    `cluster.reconnect_timeout_s` `lost`. In both cases it may connect again.
    """

    def __init__(
        self, server: ControlServer[ControlMessage], nodes: Iterable[int], cluster: Cluster
    ) -> None:
        self._server, self._silence = server, SilenceWatch[int]()
        self._timeout_s = cluster.heartbeat_timeout_s
        self._lost_after_s = max(cluster.reconnect_timeout_s, cluster.heartbeat_timeout_s)
        self._peers = dict[int, bytes]()  # ZMQ routing id, by node
        self._closed_at = dict[int, float]()
        self._silent = set[int]()  # reported as such
        for node in nodes:
            self._silence.heard(node)

    @property
    def connected(self) -> frozenset[int]:
        return frozenset(self._peers)

    def connect(self, node: int, peer: bytes) -> None:
        """Use `peer` for a node from now on."""
        self._peers[node] = peer
        self._closed_at.pop(node, None)
        self._silent.discard(node)
        self._silence.heard(node)

    def is_peer(self, node: int, peer: bytes) -> bool:
        """Return True if `peer` is the agent of a node."""
        return self._peers.get(node) == peer

    def heard(self, node: int, peer: bytes) -> bool:
        """Note a heartbeat. Returns False if the agent has to introduce itself first."""
        if not self.is_peer(node, peer):
            return False
        self._silence.heard(node)
        return True

    def drop(self, node: int) -> None:
        """Forget an agent until it connects again."""
        self._peers.pop(node, None)
        self._closed_at.pop(node, None)
        self._silent.discard(node)
        self._silence.forget(node)

    async def send(self, node: int, message: ControlMessage) -> None:
        """Send a message to a node's agent, if it is connected."""
        peer = self._peers.get(node)
        if peer and not await self._server.send(peer, message) and self._peers.get(node) == peer:
            self._closed_at.setdefault(node, time.monotonic())

    async def check(self) -> list[Loss]:
        """Send a heartbeat to each agent, and return the nodes that were lost since the last call.

        Call it every second. A send fails at once if the connection is closed.
        """
        for node in self.connected:
            await self.send(node, HEARTBEAT)
        silent = self._silence.check()
        return [*self._closed(), *self._became_silent(silent), *self._remained_silent(silent)]

    def _closed(self) -> list[Loss]:
        before = time.monotonic() - RECONNECT_S
        nodes = [node for node, at in self._closed_at.items() if at < before]
        for node in nodes:
            self.drop(node)
        return [(node, WorkerState.lost, "its connection is closed") for node in nodes]

    def _became_silent(self, silent: dict[int, float]) -> list[Loss]:
        nodes = [n for n, s in silent.items() if s > self._timeout_s and n not in self._silent]
        for node in nodes:
            self._silent.add(node)
            self._peers.pop(node, None)
        reason = f"silent for {self._timeout_s:.0f} s"
        return [(node, WorkerState.failed, reason) for node in nodes]

    def _remained_silent(self, silent: dict[int, float]) -> list[Loss]:
        nodes = [node for node, s in silent.items() if s > self._lost_after_s]
        for node in nodes:
            self.drop(node)
        reason = f"silent for {self._lost_after_s:.0f} s"
        return [(node, WorkerState.lost, reason) for node in nodes]
