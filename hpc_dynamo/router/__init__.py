"""The one view of a job's workers and their load, and the choice among them.

It lives in the head. Frontend processes use it through a unix socket (`server`, `remote`), the
batch runner in the same process; both see `route()` and get a `Lease`.
"""

from hpc_dynamo.router.decisions import BOUNDS_S, Decisions
from hpc_dynamo.router.index.hashes import block_hashes, root
from hpc_dynamo.router.index.kv_state import Caches
from hpc_dynamo.router.router import Router
from hpc_dynamo.router.rpc.client import RemoteRouter
from hpc_dynamo.router.rpc.server import RouterServer
from hpc_dynamo.router.rpc.view import NOTHING_YET, Offer, View
from hpc_dynamo.router.scheduling.lease import (
    Ask,
    Exhausted,
    Lease,
    NoSuchWorker,
    Note,
    NoWorker,
    Overloaded,
    Target,
    Wish,
)
from hpc_dynamo.router.scheduling.limits import Limits, StartShare
from hpc_dynamo.router.scheduling.peer_loads import heard
from hpc_dynamo.router.scheduling.worker import Load, Member

__all__ = [
    "BOUNDS_S",
    "NOTHING_YET",
    "Ask",
    "Caches",
    "Decisions",
    "Exhausted",
    "Lease",
    "Limits",
    "Load",
    "Member",
    "NoSuchWorker",
    "NoWorker",
    "Note",
    "Offer",
    "Overloaded",
    "RemoteRouter",
    "Router",
    "RouterServer",
    "StartShare",
    "Target",
    "View",
    "Wish",
    "block_hashes",
    "heard",
    "root",
]
