"""Loads that several heads place on the same workers, by the workers' URLs.

Each head publishes only the load that it placed itself, so that nothing is counted twice.
"""

from collections.abc import Iterable, Mapping

import msgspec

from hpc_dynamo.router.scheduling.worker import RoutedWorker, WorkerDemand

LoadByUrl = Mapping[str, WorkerDemand]


class PublishedLoads(msgspec.Struct, frozen=True):
    """The load that one head has placed on each worker; JSON between heads."""

    head: str  # RequestRouter.head_name, so that a head recognizes itself
    workers: dict[str, WorkerDemand]  # by URL


_DECODER = msgspec.json.Decoder(PublishedLoads)


def encode_loads(head: str, workers: Iterable[RoutedWorker]) -> bytes:
    """Return the JSON of PublishedLoads."""
    own = {w.url: WorkerDemand(w.prefill_tokens, w.blocks, w.active) for w in workers}
    return msgspec.json.encode(PublishedLoads(head, own))


def decode_loads(content: bytes) -> PublishedLoads:
    """Raises msgspec.DecodeError."""
    return _DECODER.decode(content)


class PeerLoads:
    """The last loads that each peer head published."""

    def __init__(self) -> None:
        self._by_head = dict[str, LoadByUrl]()

    def set(self, head: str, loads: LoadByUrl) -> None:
        """Replace the loads of one head; {} if it is gone."""
        self._by_head[head] = loads

    def total(self, url: str) -> WorkerDemand:
        """Return the load of all peers on one worker."""
        parts = [loads[url] for loads in self._by_head.values() if url in loads]
        return WorkerDemand(
            sum(part.prefill_tokens for part in parts),
            sum(part.blocks for part in parts),
            sum(part.active for part in parts),
        )
