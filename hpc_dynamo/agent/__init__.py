"""One a node: starts this node's engines, watches them, tells the head, ends them in order."""

from hpc_dynamo.agent.agent import HEARTBEAT_S, Agent
from hpc_dynamo.agent.placement import free_ports, visible_gpus

__all__ = ["HEARTBEAT_S", "Agent", "free_ports", "visible_gpus"]
