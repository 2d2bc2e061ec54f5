"""KV events of workers, from the agents of all their nodes to the router of their model.

The agent of each node relays the events of the data-parallel ranks that run there.
"""

from collections.abc import Callable

from hpc_dynamo.head.membership.layout import JobLayout
from hpc_dynamo.head.membership.links import AgentLinks
from hpc_dynamo.messages import KvEvents, KvReplayRequest
from hpc_dynamo.router import RequestRouter, target_key


class KvEventReceiver:
    """Receives KV events and requests replays. `router` is by rank of a worker."""

    def __init__(
        self, links: AgentLinks, layout: JobLayout, router: Callable[[int], RequestRouter]
    ) -> None:
        self._links, self._layout, self._router = links, layout, router

    async def receive(self, peer: bytes, events: KvEvents) -> None:
        """Process a batch, if its sender is the agent of a node of the worker.

        Events may still arrive after the end of an extra job, or from a node that was replaced.
        """
        rank, dp_rank = events.rank, events.dp_rank
        if any(self._links.is_peer(node, peer) for node in self._nodes(rank)):
            state, key = self._router(rank).kv_state, target_key(rank, dp_rank)
            if (first := state.receive_events(key, events.seq, events.payload)) is not None:
                await self.request_replay(rank, first, dp_rank)

    async def request_replay(self, rank: int, start: int, dp_rank: int | None = None) -> None:
        """Request the batches from `start` on. Only the agent of the rank's node answers."""
        request = KvReplayRequest(rank=rank, dp_rank=dp_rank, start=start)
        for node in self._nodes(rank):
            await self._links.send(node, request)

    def _nodes(self, rank: int) -> set[int]:
        worker = self._layout.workers.get(rank)
        return {shard.node for shard in worker.shards} if worker else set()
