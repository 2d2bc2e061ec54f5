"""Contact of an agent to the head, which may be suspended, restarted or cut off for a while."""

import asyncio
import logging
from collections.abc import Callable

from hpc_dynamo.config import Cluster
from hpc_dynamo.messages import ControlMessage, Heartbeat
from hpc_dynamo.run import Attempt, ExtraJobFolder
from hpc_dynamo.wire import ControlClient
from hpc_dynamo.wire.silence import SilenceWatch

HEARTBEAT_S = CHECK_INTERVAL_S = 1.0
HEAD = "head"

log = logging.getLogger(__name__)


class HeadContact:
    """Decides when an agent without a head stops its engines.

    `lost` is set if the head fell silent before the run had an outcome.
    """

    def __init__(self, cluster: Cluster, attempt: Attempt) -> None:
        self._silence = SilenceWatch[str]()
        self._silent_after_s = cluster.heartbeat_timeout_s
        self._reconnect_s = max(cluster.reconnect_timeout_s, cluster.heartbeat_timeout_s)
        # The first head starts after the agents, maybe from a busy shared file system.
        self._lost_after_s = max(self._reconnect_s, cluster.bootstrap.timeout_s)
        self._attempt = attempt.attempt if isinstance(attempt, ExtraJobFolder) else attempt
        self._reported = self.lost = False
        self._silence.heard(HEAD)

    def heard(self) -> None:
        """Note a message of the head."""
        self._silence.heard(HEAD)
        self._lost_after_s, self._reported = self._reconnect_s, False

    async def send_heartbeats(self, client: ControlClient[ControlMessage], node: int) -> None:
        """Send the heartbeats of this node until cancelled."""
        while True:
            await client.send(Heartbeat(node=node))
            await asyncio.sleep(HEARTBEAT_S)

    async def watch(self, stop: Callable[[], object]) -> None:
        """Call `stop` once the head is lost: silent for `cluster.reconnect_timeout_s`, or silent
        after the end of the run."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            silent_s = self._silence.check()[HEAD]
            if silent_s > self._silent_after_s and self._is_lost(silent_s):
                stop()
                return

    def _is_lost(self, silent_s: float) -> bool:
        if silent_s > self._lost_after_s:
            self.lost = self._attempt.outcome() is None
            log.error("head lost, stopping this node's workers: no message for %.0f s", silent_s)
            return True
        if self._attempt.outcome() is not None:
            log.info("head lost and the run has ended: stopping this node's workers")
            return True
        if not self._reported:
            self._reported = True
            left_s = self._lost_after_s - silent_s
            log.warning("no message of the head for %.0f s; waiting %.0f s more", silent_s, left_s)
        return False
