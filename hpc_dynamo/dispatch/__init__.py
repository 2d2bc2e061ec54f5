"""Execution of requests: choose a worker, prefill, hand over, decode.

`builder` creates the routing request and decides how a request is executed (`execution`). `serve`,
`route` and `batch` each run it in their own process. The router, in this process or behind a
socket, knows the workers and their load. The engine defines how two workers share a request: one
after the other (`in_turn`), or both at once (`at_once`).
"""

from hpc_dynamo.dispatch.builder import Circumstances, Prompts, WorkBuilder
from hpc_dynamo.dispatch.dispatcher import Dispatcher, Routes
from hpc_dynamo.dispatch.reserved import RESERVED, hidden
from hpc_dynamo.dispatch.workers import OBJECT, Broken, Incoming, Taker, Whole, Work

__all__ = [
    "OBJECT",
    "RESERVED",
    "Broken",
    "Circumstances",
    "Dispatcher",
    "Incoming",
    "Prompts",
    "Routes",
    "Taker",
    "Whole",
    "Work",
    "WorkBuilder",
    "hidden",
]
