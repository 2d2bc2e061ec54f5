"""Request router of the head: selects the workers of each request and limits admission.

- router: RequestRouter, which grants leases on ready workers and queues requests.
- worker_set: ready workers and their data-parallel ranks.
- scheduling/: policies, admission limits, the queue, workers and leases.
- index/: KV blocks cached on each worker.
- rpc/: the connection to the frontend processes, with a protocol diagram.
- active_lease, decisions, interval_stats, throughput: accounting.

The batch runner calls RequestRouter.route directly, frontends through RemoteRouter.route.
"""

from hpc_dynamo.router.decisions import DecisionStats
from hpc_dynamo.router.index.block_owners import TargetKey, target_key
from hpc_dynamo.router.index.hashes import adapter_root, block_hashes
from hpc_dynamo.router.index.kv_state import KvState
from hpc_dynamo.router.router import RequestRouter
from hpc_dynamo.router.rpc.client import RemoteRouter
from hpc_dynamo.router.rpc.server import RouterServer
from hpc_dynamo.router.rpc.view import NOT_AVAILABLE, ModelAvailability, RunView
from hpc_dynamo.router.scheduling.lease import (
    AllWorkersTried,
    Lease,
    LeaseEvent,
    NoSuchWorker,
    NoWorker,
    Overloaded,
    RoutingHints,
    RoutingRequest,
    Target,
)
from hpc_dynamo.router.scheduling.limits import AdmissionLimits, StartShare
from hpc_dynamo.router.scheduling.peer_loads import decode_loads
from hpc_dynamo.router.scheduling.worker import RoutedWorker, RoutingTarget, WorkerDemand

__all__ = [
    "NOT_AVAILABLE",
    "AdmissionLimits",
    "AllWorkersTried",
    "DecisionStats",
    "KvState",
    "Lease",
    "LeaseEvent",
    "ModelAvailability",
    "NoSuchWorker",
    "NoWorker",
    "Overloaded",
    "RemoteRouter",
    "RequestRouter",
    "RoutedWorker",
    "RouterServer",
    "RoutingHints",
    "RoutingRequest",
    "RoutingTarget",
    "RunView",
    "StartShare",
    "Target",
    "TargetKey",
    "WorkerDemand",
    "adapter_root",
    "block_hashes",
    "decode_loads",
    "target_key",
]
