"""Prefill and decode workers that receive a request at the same time and connect to each other."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from hpc_dynamo.dispatch.prefill_usage import ResponseWithPrefillUsage
from hpc_dynamo.dispatch.worker_client import (
    GRACE_S,
    EngineRequest,
    ResponseSink,
    WorkerClient,
    WorkerFailed,
    read_object,
)
from hpc_dynamo.engines import Body, ConcurrentProtocol
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import Lease, Target

BOOTSTRAP_ROOMS = 1 << 63  # SGLang's room numbers are signed 64-bit integers

log = logging.getLogger(__name__)


class ConcurrentHandoff:
    """See worker_client.Handoff."""

    def __init__(self, workers: WorkerClient, protocol: ConcurrentProtocol) -> None:
        self._workers, self._protocol = workers, protocol
        self._bootstrap_info = dict[str, Body]()  # by URL of the prefill worker

    async def run(
        self, lease: Lease, prefill: Target, request: EngineRequest, sink: ResponseSink
    ) -> None:
        """Execute a request; the decode worker's response goes to `sink`.

        The failure of one worker cancels the request on the other.
        """
        try:
            info = await self._get_bootstrap_info(lease, prefill)
            room = _bootstrap_room(prefill)
            bodies = self._protocol.worker_bodies(request.body, prefill.url, info, room)
            prefill_body, decode_body = map(msgspec.json.encode, bodies)
            # A header would override the room, also for the other prompts of a list.
            target = Target(prefill.rank, prefill.url)
            await self._send_both(lease, target, request, sink, prefill_body, decode_body)
        except RequestFailed:
            # A restarted worker may have another bootstrap address.
            self._bootstrap_info.pop(prefill.url, None)
            raise

    async def _get_bootstrap_info(self, lease: Lease, prefill: Target) -> Body:
        if prefill.url not in self._bootstrap_info:
            path = self._protocol.bootstrap_path
            async with self._workers.get(lease, prefill, path) as response:
                self._bootstrap_info[prefill.url] = read_object(await response.read(), prefill)
        return self._bootstrap_info[prefill.url]

    async def _send_both(
        self, lease: Lease, target: Target, request: EngineRequest, sink: ResponseSink,
        prefill_body: bytes, decode_body: bytes,
    ) -> None:  # fmt: skip
        try:
            async with asyncio.TaskGroup() as tasks:
                prefill = tasks.create_task(
                    self._prefill(lease, target, request, sink, prefill_body)
                )
                async with (
                    _delayed_worker_errors(),
                    self._workers.post(lease, lease.decode, request, decode_body) as response,
                ):
                    await sink.receive(ResponseWithPrefillUsage(response, prefill), lease)
                await asyncio.wait([prefill], timeout=GRACE_S)
                prefill.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _prefill(
        self, lease: Lease, target: Target, request: EngineRequest, sink: ResponseSink,
        body: bytes,
    ) -> bytes:  # fmt: skip
        """Run the prefill and return the response. A failure is ignored once the decode worker's
        response has started."""
        content = b""
        try:
            async with (
                _delayed_worker_errors(),
                self._workers.post(lease, target, request, body) as response,
            ):
                content = await response.read()
            lease.report_prefilled()
        except RequestFailed as e:
            if not sink.started:
                raise
            log.warning("the prefill worker failed after the KV transfer: %s", e)
        return content


def _bootstrap_room(prefill: Target) -> int:
    """Return a random room. Its remainder selects the rank of the prefill worker (SGLang 0.5.23,
    managers/data_parallel_controller.py, follow_bootstrap_room_scheduler)."""
    if prefill.dp_rank is None:
        return random.randrange(BOOTSTRAP_ROOMS)
    return random.randrange(BOOTSTRAP_ROOMS // prefill.dp_size) * prefill.dp_size + prefill.dp_rank


@asynccontextmanager
async def _delayed_worker_errors() -> AsyncIterator[None]:
    """Delay an error response by GRACE_S.

    A worker may answer with an error because the other worker ended. The delay lets the other
    worker's error, the cause, be raised first.
    """
    try:
        yield
    except WorkerFailed as e:
        if e.body:
            await asyncio.sleep(GRACE_S)
        raise
