"""State and callbacks that a server shares with its connections."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from hpc_dynamo.http.connection_table import ConnectionTable
from hpc_dynamo.http.exchange import Header, HttpLimits, HttpRequest, ResponseWriter

Handler = Callable[[HttpRequest, ResponseWriter], Awaitable[None]]
KeyCheck = Callable[[dict[str, str]], bool]
"""Headers of a request -> True if its client may send a body."""
ErrorFormatter = Callable[[int, str, Mapping[str, str]], tuple[bytes, list[Header]]]
"""(status, message, headers of the request received so far) -> body and headers."""


@dataclass
class ServerContext:
    """State that all connections of a server share."""

    handler: Handler
    format_error: ErrorFormatter  # for malformed requests and failed handlers
    limits: HttpLimits
    tasks: asyncio.TaskGroup
    connections: ConnectionTable
    has_key: KeyCheck | None  # None: no client needs a key
    buffered_bytes: int = 0  # bodies that are being read or served
    uncollected_bytes: int = 0  # bodies that were received after the last collection

    def count_body(self, size: int) -> None:
        """Count the body of a new request, and collect garbage of earlier ones after many bytes.

        The traceback of an error may keep a body in a cycle. Python collects after a number of
        objects, whatever their size: thousands of errors later.
        """
        self.uncollected_bytes += size
        if self.uncollected_bytes >= self.limits.collect_bytes:
            self.uncollected_bytes = 0
            gc.collect()
