"""All ZMQ sockets: the control plane of a run, and what engines tell of their KV caches."""

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
