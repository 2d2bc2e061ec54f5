"""Nodes of the job and the workers on each, as extra jobs come and go and workers move."""

import logging

from hpc_dynamo.head.membership.spare_nodes import SpareNodes
from hpc_dynamo.messages import NodeRecord, NodesReplaced, Roster
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan, Worker

log = logging.getLogger(__name__)


class JobLayout:
    """Nodes that have joined, nodes of extra jobs that are expected, and the place of each worker.

    `nodes` are those that have joined, `workers` those of these nodes, by rank.
    """

    def __init__(self, attempt: Attempt, roster: Roster) -> None:
        self._spares = SpareNodes(attempt, roster)
        layout = self._spares.layout
        self.nodes = {record.node: record for record in roster.nodes}
        self.workers = {worker.rank: worker for worker in layout.head_plan.workers}
        self._first_extra_node = layout.nodes
        self._expected = dict[int, tuple[Worker, ...]]()  # workers of extra jobs' nodes

    @property
    def replacements(self) -> NodesReplaced:
        """Message that informs the agents about nodes that were replaced."""
        return self._spares.message

    def expect(self, plan: Plan) -> None:
        """Accept the nodes of an extra job and their workers from now on."""
        new = plan.used_nodes - self.nodes.keys()
        self._expected |= {node: plan.on_node(node) for node in new}

    def forget(self, plan: Plan) -> None:
        """Accept no more nodes of an extra job."""
        for node in plan.used_nodes:
            self._expected.pop(node, None)

    def expects(self, node: int) -> bool:
        """Return True if an extra job has the node, and the node has not joined."""
        return node in self._expected

    def knows(self, node: int) -> bool:
        """Return True if a node belongs to the job."""
        return node in self.nodes or node in self._expected or self.of_head(node)

    def of_head(self, node: int) -> bool:
        """Return True if a node belongs to the head's job."""
        return self._spares.owns(node)

    def of_extra_job(self, node: int) -> bool:
        return node >= self._first_extra_node

    def join(self, record: NodeRecord) -> bool:
        """Add a node, also one that is back. Return True if it takes over workers of others."""
        self.nodes[record.node] = record
        for worker in self._expected.pop(record.node, ()):
            self.workers[worker.rank] = worker
        return self.of_head(record.node) and self._spares.joined(record)

    def fail(self, node: int, *, for_good: bool = False) -> bool:
        """Note the failure of a node. Return True if others take over its workers (see `move`).

        With `for_good` no worker can run there, also if its agent is connected.
        """
        return self.of_head(node) and self._spares.failed(node, for_good=for_good)

    def move(self) -> list[Worker]:
        """Place the workers of failed nodes on spare nodes. Return those that move."""
        before = self.workers
        placed = {worker.rank: worker for worker in self._spares.layout.head_plan.workers}
        self.workers = before | placed
        moved = [w for w in placed.values() if w.node != before[w.rank].node]
        for worker in moved:
            log.info("worker %d moves to node %d", worker.rank, worker.node)
        return moved

    def drop(self, node: int) -> list[int]:
        """Remove a node that does not come back. Return the ranks of its workers."""
        del self.nodes[node]
        ranks = [worker.rank for worker in self.on(node)]
        for rank in ranks:
            del self.workers[rank]
        return ranks

    def on(self, node: int) -> list[Worker]:
        """Return the workers whose first shard a node runs now."""
        return [worker for worker in self.workers.values() if worker.node == node]

    def runs(self, node: int, rank: int) -> bool:
        """Return True if a node runs the first shard of a worker now."""
        return rank in self.workers and self.workers[rank].node == node
