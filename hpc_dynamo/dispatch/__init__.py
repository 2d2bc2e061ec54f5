"""Execution of requests: choose a worker, prefill, hand over, decode.

`builder` creates the routing request and decides how a request is executed (`execution`). `serve`,
`route` and `batch` each run it in their own process. The router, in this process or behind a
socket, knows the workers and their load. The engine defines how two workers share a request: one
after the other (`in_turn`), or both at once (`at_once`).
"""

from hpc_dynamo.dispatch.dispatcher import Dispatcher, RequestRouter
from hpc_dynamo.dispatch.request_builder import PromptTokenizer, RequestBuilder, RequestContext
from hpc_dynamo.dispatch.reserved_fields import RESERVED_FIELDS, nested_reserved_fields
from hpc_dynamo.dispatch.worker_client import (
    OBJECT_DECODER,
    BufferedResponse,
    EngineRequest,
    IncomingResponse,
    ResponseSink,
    WorkerFailed,
)

__all__ = [
    "OBJECT_DECODER",
    "RESERVED_FIELDS",
    "BufferedResponse",
    "Dispatcher",
    "EngineRequest",
    "IncomingResponse",
    "PromptTokenizer",
    "RequestBuilder",
    "RequestContext",
    "RequestRouter",
    "ResponseSink",
    "WorkerFailed",
    "nested_reserved_fields",
]
