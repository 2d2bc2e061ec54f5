"""The one view of a job's workers and their load, and the choice among them.

It lives in the head. Frontend processes use it through a unix socket (`server`, `remote`), the
batch runner in the same process; both see `route()` and get a `Lease`.
"""

from hpc_dynamo.router.hashes import block_hashes
from hpc_dynamo.router.lease import Ask, Exhausted, Lease, NoWorker, Overloaded, Target
from hpc_dynamo.router.limits import Limits
from hpc_dynamo.router.members import Member
from hpc_dynamo.router.remote import RemoteRouter
from hpc_dynamo.router.router import Router
from hpc_dynamo.router.server import RouterServer

__all__ = [
    "Ask",
    "Exhausted",
    "Lease",
    "Limits",
    "Member",
    "NoWorker",
    "Overloaded",
    "RemoteRouter",
    "Router",
    "RouterServer",
    "Target",
    "block_hashes",
]
