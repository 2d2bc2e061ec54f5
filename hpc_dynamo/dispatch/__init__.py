"""The one path of a request: choose, prefill, hand over, decode.

`builder` decides what the router is asked and how a request is executed (`execution`). Shared by
every front of the product, in the process of the front. Who serves and how busy
they are is the router's to know, in this process or behind a socket. How two workers share a
request is their engine's: one after the other (`in_turn`), or both at once (`at_once`).
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
