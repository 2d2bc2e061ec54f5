"""A prefill worker, then a decode worker that is told where the KV cache lies."""

import asyncio
import logging

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

RELEASE_S = 10.0

log = logging.getLogger(__name__)


class SequentialHandoff:
    """See workers.Sharing. `tasks` owns what is still to be done for requests that were
    cancelled."""

    def __init__(
        self, workers: WorkerClient, dialect: SequentialProtocol, tasks: asyncio.TaskGroup
    ) -> None:
        self._workers, self._dialect, self._tasks = workers, dialect, tasks

    async def run(
        self, lease: Lease, prefill: Target, work: EngineRequest, taker: ResponseSink
    ) -> None:
        """The decode worker is asked once the prefill worker has answered."""
        handed = await self._hand_over(lease, prefill, work)
        accepted = False
        try:
            content = msgspec.json.encode(handed)
            async with self._workers.post(lease, lease.decode, work, content) as answer:
                accepted = True
                await taker.receive(answer, lease)
        finally:
            # Refused or not: vLLM 0.32 frees what its handlers refuse, but not what they never saw
            # (a field of the wrong type), and both are a 400. Giving up blocks that are free
            # already costs a line in the prefill worker's log.
            if not accepted:
                self._tasks.create_task(self._release(lease.decode, work.path, handed))

    async def _hand_over(self, lease: Lease, target: Target, work: EngineRequest) -> Body:
        """The body for the decode worker. Who cancels this may come just after the prefill
        worker has done its part; its blocks would be kept for the whole lease."""
        prefill = self._tasks.create_task(self._prefill(lease, target, work))
        try:
            handed = await asyncio.shield(prefill)
        except asyncio.CancelledError:
            self._tasks.create_task(self._abandon(prefill, lease.decode, work.path))
            raise
        if isinstance(handed, RequestFailed):
            raise handed
        return handed

    async def _abandon(
        self, prefill: asyncio.Task[Body | RequestFailed], decode: Target, path: str
    ) -> None:
        """End a prefill that nobody waits for; blocks that it has made are given up."""
        await asyncio.wait([prefill], timeout=GRACE_S)
        if not prefill.done():
            prefill.cancel()
        elif not isinstance(handed := prefill.result(), RequestFailed):
            await self._release(decode, path, handed)

    async def _release(self, decode: Target, path: str, handed: Body) -> None:
        body = self._dialect.release(handed)
        if body is None:
            return
        try:
            async with asyncio.timeout(RELEASE_S):
                content = msgspec.json.encode(body)
                async with self._workers.client.send("POST", decode.url, path, content) as answer:
                    await answer.read()
        except OSError as e:  # the lease of the blocks ends by itself
            log.warning("blocks stay until the end of their lease: %s", e or type(e).__name__)

    async def _prefill(
        self, lease: Lease, target: Target, work: EngineRequest
    ) -> Body | RequestFailed:
        """A failure is an answer here: the task's owner must not end for it."""
        content = msgspec.json.encode(self._dialect.prefill(work.body))
        try:
            async with self._workers.post(lease, target, work, content) as answer:
                body = await answer.read()
            lease.report_prefilled()
            return self._dialect.decode(work.body, read_object(body, target))
        except RequestFailed as e:
            return e
