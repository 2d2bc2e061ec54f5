"""ZMQ sockets. `control`: between agents and head. `events`: KV events of engines."""

from hpc_dynamo.wire.control import ControlClient, ControlServer, MessageCodec, new_keys
from hpc_dynamo.wire.events import KvEventPublisher, KvEventSubscriber

__all__ = [
    "ControlClient",
    "ControlServer",
    "KvEventPublisher",
    "KvEventSubscriber",
    "MessageCodec",
    "new_keys",
]
