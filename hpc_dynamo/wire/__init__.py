"""All ZMQ sockets: the control plane of a run, and what engines tell of their KV caches."""

from hpc_dynamo.wire.control import Client, Codec, Server, new_keys
from hpc_dynamo.wire.events import EventPublisher, EventSubscriber

__all__ = ["Client", "Codec", "EventPublisher", "EventSubscriber", "Server", "new_keys"]
