"""Agent of a node: starts the node's engines, monitors them and reports to the head.

    agent            the workers of the node; messages of the head
    managed_worker   one worker: start, restart, role change, stop
    engine_process   one engine process: command, environment, log, error after its exit
    engine_start     wait until an engine generates a token
    hang_watch       wait until an engine exits or hangs
    progress_watch   signs of progress of one engine
    hang_detector    limits of the time without progress
    probe            HTTP queries to an engine: health, models, paths
    placement        ports and GPUs of a worker on this node
    events           KV events of the node's engines, relayed to the head
    shard_leader     first shard of a multi-node worker: starts the other shards
    shard_followers  other shards of multi-node workers, started on request of their leader

Protocol of a multi-node worker, one shard per node. All messages pass through the head
(head/membership/shards).

    agent of the first shard (ShardLeader)       agents of the other shards (ShardFollowers)
      chooses address and ports of the rendezvous
      ── StartShard ─────────────────────────────▶  start their engine processes
      reports the worker ready once the first shard generates a token

      a follower's process exits:
      ◀──────────────────────────── ShardExited ──  exit status and log
      the first shard exits, or the leader stops it:
      reports the worker failed
      ── StopShard (sent by the head) ───────────▶  stop their engine processes
      starts again on new ports
"""

from hpc_dynamo.agent.agent import Agent
from hpc_dynamo.agent.head_contact import HEARTBEAT_S

__all__ = ["HEARTBEAT_S", "Agent"]
