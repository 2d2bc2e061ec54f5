"""Request execution: choose workers, prefill, transfer the KV cache, decode.

The life of a request:

    HTTP request (frontend)   or   batch line (batch)
                      |
       request_builder: token ids, block hashes, RoutingRequest
                        reserved_fields, context_limit: what is removed or refused
                        execution: aggregated, disaggregated, or several samples
                      |
                 dispatcher  --- RoutingRequest --->  router (this process or a socket)
                      |      <-- Lease: workers -----   queues until workers are free
                      |
        +-------------+------------------+----------------------------+
     aggregated   sequential_handoff   concurrent_handoff   fan_out: one request per sample,
     decode worker  prefill, then        prefill and decode    merge, merged_response: one response
     only           decode (vLLM,        at the same time
                    TensorRT-LLM)        (SGLang)
                      |
              request_abort: ends abandoned requests on the engine (SGLang)
              worker_client: HTTP, errors that name the worker
              response_check: is it an answer, and complete?
                      |
       ResponseSink: relayed to the client, or buffered for a batch result

If a worker fails before the response has started, the dispatcher repeats the request on another
worker. If it fails in the middle of a stream, `migration` continues the stream on another worker:

    stream_record    what the client has, as bytes
    partial_answer   its content
    continuation     the request that continues it, or why there is none (obstacles)
    chunk_converter  the new events for the client (continued_stream)
    stream_formats   forms of the four paths' streams

`serve`, `route` and `batch` run this code in their own process.
"""

from hpc_dynamo.dispatch.dispatcher import Dispatcher, LeaseProvider
from hpc_dynamo.dispatch.migration import StreamMigrator
from hpc_dynamo.dispatch.request_builder import PromptTokenizer, RequestBuilder
from hpc_dynamo.dispatch.request_context import RequestContext
from hpc_dynamo.dispatch.reserved_fields import RESERVED_FIELDS
from hpc_dynamo.dispatch.stream_record import StreamRecord
from hpc_dynamo.dispatch.worker_client import (
    OBJECT_DECODER,
    BufferedResponse,
    EngineRequest,
    IncomingResponse,
    ResponseSink,
    UnhandledException,
    WorkerFailed,
    stream_error,
)

__all__ = [
    "OBJECT_DECODER",
    "RESERVED_FIELDS",
    "BufferedResponse",
    "Dispatcher",
    "EngineRequest",
    "IncomingResponse",
    "LeaseProvider",
    "PromptTokenizer",
    "RequestBuilder",
    "RequestContext",
    "ResponseSink",
    "StreamMigrator",
    "StreamRecord",
    "UnhandledException",
    "WorkerFailed",
    "stream_error",
]
