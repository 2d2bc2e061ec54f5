"""Spare nodes, which run the workers of nodes that fail."""

import logging

from hpc_dynamo.errors import file_error
from hpc_dynamo.messages import NodeRecord, NodesReplaced, Roster
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.topology import Plan, replace_failed, with_replacements

log = logging.getLogger(__name__)


def unfit_nodes(plan: Plan, roster: Roster) -> frozenset[int]:
    """Return the nodes of the head's job that did not come to its start, or have a fault."""
    fit = {record.node for record in roster.nodes if not record.faults}
    return frozenset(range(plan.head_plan.nodes)) - fit


class SpareNodes:
    """Layout of the head's job while nodes fail and return.

    `message` informs the agents. It is kept in the run folder, so that a restarted head knows it.
    """

    def __init__(self, attempt: Attempt, roster: Roster) -> None:
        self._file, self._plan = attempt.replacements_file, attempt.plan()
        self._failed, self._bad = set(unfit_nodes(self._plan, roster)), set[int]()
        found, self._restarts = attempt.replacements(), roster.restart_count
        if found is None or found.restart_count != self._restarts:
            found = NodesReplaced(restart_count=self._restarts)
        self.message = found
        self._failed |= found.replacements.keys()  # they may join again
        self._update()

    @property
    def layout(self) -> Plan:
        """Layout in which each worker is on the node that runs it now."""
        return with_replacements(self._plan, self.message.replacements)

    def owns(self, node: int) -> bool:
        """Return True if a node belongs to the head's job."""
        return node < self._plan.head_plan.nodes

    def failed(self, node: int, *, for_good: bool = False) -> bool:
        """Note the failure of a node. Return True if its workers have moved to a spare node.

        With `for_good` no worker can run there, also if its agent is connected.
        """
        used = node in self.layout.used_nodes
        self._failed.add(node)
        if for_good:
            self._bad.add(node)
        return self._update() and used

    def joined(self, record: NodeRecord) -> bool:
        """Note that a node is back, or late. Return True if it takes over workers."""
        if not record.faults and record.node not in self._bad:
            self._failed.discard(record.node)
        return self._update()

    def _update(self) -> bool:
        before = self.message.replacements
        now = replace_failed(self._plan, before, self._failed)
        if now == before:
            return False
        self.message = NodesReplaced(replacements=now, restart_count=self._restarts)
        try:
            write_json(self._file, self.message)
        except OSError as e:  # without it only the restart of a head is worse
            log.warning("replaced nodes not written: %s", file_error(e) or e)
        return True
