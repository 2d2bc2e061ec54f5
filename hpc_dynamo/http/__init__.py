"""HTTP/1.1 over asyncio protocols: a server, a client, and a relay between the two.

Parsing is llhttp's (httptools). What is ours is the part between parser and handler, because
the usual libraries cost more there than the rest of a request together; figures in
docs/measurements.md. A stream of tokens passes from socket to socket without waking a task.

Protocol: RFC 9112. One request is answered at a time on a connection; pipelined ones wait.
"""

from hpc_dynamo.http.client import Answer, Client, Sink
from hpc_dynamo.http.connection import Handler
from hpc_dynamo.http.exchange import Header, Limits, Reply, Request
from hpc_dynamo.http.server import Server
from hpc_dynamo.http.tls import pinned

__all__ = [
    "Answer",
    "Client",
    "Handler",
    "Header",
    "Limits",
    "Reply",
    "Request",
    "Server",
    "Sink",
    "pinned",
]
