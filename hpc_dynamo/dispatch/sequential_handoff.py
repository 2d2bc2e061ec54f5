"""Prefill worker first, then the decode worker, which gets the address of the KV cache."""

import asyncio
import logging
from dataclasses import replace

import msgspec

from hpc_dynamo.dispatch.worker_client import (
    GRACE_S,
    EngineRequest,
    ResponseSink,
    WorkerClient,
    read_object,
)
from hpc_dynamo.engines import Body, SequentialProtocol
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import Lease, Target

RELEASE_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


class SequentialHandoff:
    """See worker_client.Handoff. `tasks` owns the cleanup of cancelled requests."""

    def __init__(
        self, workers: WorkerClient, protocol: SequentialProtocol, tasks: asyncio.TaskGroup
    ) -> None:
        self._workers, self._protocol, self._tasks = workers, protocol, tasks

    async def run(
        self, lease: Lease, prefill: Target, request: EngineRequest, sink: ResponseSink
    ) -> None:
        """Execute a request; the decode worker's response goes to `sink`."""
        decode_body = await self._decode_body(lease, prefill, request)
        accepted = False
        try:
            content = msgspec.json.encode(decode_body)
            headers = self._protocol.decode_headers(decode_body, self._workers.client.token)
            signed = replace(request, headers=(*request.headers, *headers))
            async with self._workers.post(lease, lease.decode, signed, content) as response:
                accepted = True
                await sink.receive(response, lease)
        finally:
            # vLLM 0.32 frees the blocks of requests that its handlers reject, but not of those
            # rejected earlier (a field of the wrong type). Both are a 400. Releasing blocks that
            # are already free only costs a line in the prefill worker's log.
            if not accepted:
                self._tasks.create_task(self._release(lease.decode, request.path, decode_body))

    async def _decode_body(self, lease: Lease, target: Target, request: EngineRequest) -> Body:
        """Run the prefill; return the body for the decode worker.

        On cancellation the prefill worker may just have finished, and would keep the blocks until
        their lease ends. So the prefill is cancelled or its blocks are released in the background.
        """
        prefill = self._tasks.create_task(self._prefill(lease, target, request))
        try:
            result = await asyncio.shield(prefill)
        except asyncio.CancelledError:
            self._tasks.create_task(self._abandon(prefill, lease.decode, request.path))
            raise
        if isinstance(result, RequestFailed):
            raise result
        return result

    async def _abandon(
        self, prefill: asyncio.Task[Body | RequestFailed], decode: Target, path: str
    ) -> None:
        """Cancel a prefill, or release the blocks that it has computed."""
        await asyncio.wait([prefill], timeout=GRACE_S)
        if not prefill.done():
            prefill.cancel()
        elif not isinstance(decode_body := prefill.result(), RequestFailed):
            await self._release(decode, path, decode_body)

    async def _release(self, decode: Target, path: str, decode_body: Body) -> None:
        body = self._protocol.release(decode_body)
        if body is None:
            return
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                content = msgspec.json.encode(body)
                async with self._workers.client.send("POST", decode.url, path, content) as response:
                    await response.read()
        except OSError as e:
            log.warning("KV blocks stay until their lease ends: %s", e or type(e).__name__)

    async def _prefill(
        self, lease: Lease, target: Target, request: EngineRequest
    ) -> Body | RequestFailed:
        """Return the body for the decode worker. Returns errors, since raising them would cancel
        the task group."""
        content = msgspec.json.encode(self._protocol.prefill(request.body))
        try:
            async with self._workers.post(lease, target, request, content) as response:
                body = await response.read()
            lease.report_prefilled()
            return self._protocol.decode(request.body, read_object(body, target))
        except RequestFailed as e:
            return e
