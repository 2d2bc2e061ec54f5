"""Loads that several heads place on the same workers, by RoutingTarget.address.

Each head publishes only the load that it placed itself, so that nothing is counted twice.
"""

from collections.abc import Iterable, Mapping

import msgspec

from hpc_dynamo.router.scheduling.worker import RoutedWorker, WorkerDemand

LoadByAddress = Mapping[str, WorkerDemand]


class PublishedLoads(msgspec.Struct, frozen=True):
    """The load that one head has placed on each target; JSON between heads."""

    head: str  # RequestRouter.head_name, so that a head recognizes itself
    workers: dict[str, WorkerDemand]  # by address


_DECODER = msgspec.json.Decoder(PublishedLoads)


def encode_loads(head: str, workers: Iterable[RoutedWorker]) -> bytes:
    """Return the JSON of PublishedLoads."""
    own = {
        t.address: WorkerDemand(t.prefill_tokens, t.blocks, t.active)
        for w in workers
        for t in w.targets
    }
    return msgspec.json.encode(PublishedLoads(head, own))


def decode_loads(content: bytes) -> PublishedLoads:
    """Raises msgspec.DecodeError."""
    return _DECODER.decode(content)


class PeerLoads:
    """The last loads that each peer head published."""

    def __init__(self) -> None:
        self._by_head = dict[str, LoadByAddress]()

    def set(self, head: str, loads: LoadByAddress) -> None:
        """Replace the loads of one head; {} if it is gone."""
        self._by_head[head] = loads

    def total(self, address: str) -> WorkerDemand:
        """Return the load of all peers on one target."""
        parts = [loads[address] for loads in self._by_head.values() if address in loads]
        return WorkerDemand(
            sum(part.prefill_tokens for part in parts),
            sum(part.blocks for part in parts),
            sum(part.active for part in parts),
        )
