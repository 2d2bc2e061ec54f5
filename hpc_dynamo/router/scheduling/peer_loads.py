"""What several heads before the same workers have on them, by the workers' URLs.

Each publishes what it has itself, and nothing that it heard; so nothing is counted twice.
"""

from collections.abc import Iterable, Mapping

import msgspec

from hpc_dynamo.router.scheduling.worker import Load, Member

Loads = Mapping[str, Load]  # by URL


class Published(msgspec.Struct, frozen=True):
    """What one head has on each worker."""

    head: str  # its name; a head that hears itself knows it by that
    workers: dict[str, Load]  # by URL


DECODER = msgspec.json.Decoder(Published)


def publish(head: str, members: Iterable[Member]) -> bytes:
    """JSON of Published."""
    own = {m.url: Load(m.prefill_tokens, m.blocks, m.active) for m in members}
    return msgspec.json.encode(Published(head, own))


def heard(content: bytes) -> Published:
    """Raises msgspec.DecodeError."""
    return DECODER.decode(content)


class Others:
    """The last word of each other head."""

    def __init__(self) -> None:
        self._said = dict[str, Loads]()

    def heed(self, head: str, loads: Loads) -> None:
        """Instead of what it said before; nothing, where it is not there any more."""
        self._said[head] = loads

    def on(self, url: str) -> Load:
        """All together."""
        parts = [loads[url] for loads in self._said.values() if url in loads]
        return Load(
            sum(part.prefill_tokens for part in parts),
            sum(part.blocks for part in parts),
            sum(part.active for part in parts),
        )
