"""Ends abandoned requests on engines that look only now and then whether their client has left."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import uuid4

import msgspec

from hpc_dynamo.dispatch.worker_client import EngineRequest
from hpc_dynamo.engines import Body, ConcurrentProtocol, PdProtocol
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import HttpClient
from hpc_dynamo.router import Lease, Target

ABORT_TIMEOUT_S = 5.0  # afterwards the engine has found out by itself

log = logging.getLogger(__name__)


class RequestAborter:
    """Gives ids to requests, and aborts those that end early on all workers of their lease.

    Requests of other engines than SGLang, which notice at once that a connection was closed, stay
    unchanged. `tasks` owns the aborts.
    """

    def __init__(self, client: HttpClient, protocol: PdProtocol, tasks: asyncio.TaskGroup) -> None:
        self._client, self._tasks = client, tasks
        self._protocol = protocol if isinstance(protocol, ConcurrentProtocol) else None

    @contextmanager
    def abortable(self, lease: Lease, request: EngineRequest) -> Iterator[EngineRequest]:
        """Yield the request with an id. If the block is cancelled or fails, the request is aborted
        in the background. Each attempt needs an id of its own: workers refuse one that they have.
        """
        protocol, path = self._protocol, request.path.partition("?")[0]
        if protocol is None:
            yield request
            return
        body = protocol.with_request_id(path, request.body, uuid4().hex)
        if body is None:
            yield request
            return
        try:
            # The handoff between two workers encodes `body` itself.
            content = b"" if lease.prefill else msgspec.json.encode(body)
            yield replace(request, body=body, content=content)
        except BaseException as e:
            # The only worker of a request has ended it if it has answered with an error.
            if lease.prefill or not isinstance(e, RequestFailed):
                self._start_aborts(lease, protocol.abort_path, protocol.abort_bodies(path, body))
            raise

    def _start_aborts(self, lease: Lease, path: str, bodies: list[Body]) -> None:
        for target in filter(None, (lease.prefill, lease.decode)):
            abort = self._abort(target, path, bodies)
            try:
                self._tasks.create_task(abort)
            except RuntimeError:  # the task group is shutting down
                abort.close()

    async def _abort(self, target: Target, path: str, bodies: list[Body]) -> None:
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                for body in bodies:
                    content = msgspec.json.encode(body)
                    async with self._client.send("POST", target.url, path, content) as response:
                        await response.read()
        except OSError as e:  # the worker may be the cause of the abort
            log.info("worker %d: request not aborted: %s", target.rank, e or type(e).__name__)
