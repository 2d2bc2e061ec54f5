"""HTTP/1.1 over asyncio protocols: a server, a client, and a relay between the two.

llhttp (httptools) parses. This package replaces the part between parser and handler, because the
usual libraries cost more there than the rest of a request (benchmarks/results/libraries.md). A
stream of tokens passes from socket to socket without waking a task.

Protocol: RFC 9112. A connection serves one request at a time; pipelined requests wait.
"""

from hpc_dynamo.http.client import HttpClient
from hpc_dynamo.http.exchange import Header, HttpLimits, HttpRequest, ResponseWriter
from hpc_dynamo.http.response import MAX_REPORT_BYTES, ByteSink, HttpResponse
from hpc_dynamo.http.server import HttpServer
from hpc_dynamo.http.server_context import Handler
from hpc_dynamo.http.tls import pinned_tls_context

__all__ = [
    "MAX_REPORT_BYTES",
    "ByteSink",
    "Handler",
    "Header",
    "HttpClient",
    "HttpLimits",
    "HttpRequest",
    "HttpResponse",
    "HttpServer",
    "ResponseWriter",
    "pinned_tls_context",
]
