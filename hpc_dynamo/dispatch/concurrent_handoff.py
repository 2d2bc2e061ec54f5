"""A prefill and a decode worker that get a request at the same time and find each other."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

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

ROOMS = 1 << 63  # SGLang's rooms are signed 64-bit numbers

log = logging.getLogger(__name__)


class ConcurrentHandoff:
    """See workers.Sharing."""

    def __init__(self, workers: WorkerClient, dialect: ConcurrentProtocol) -> None:
        self._workers, self._dialect = workers, dialect
        self._introduced = dict[Target, Body]()  # what prefill workers told of where to meet them

    async def run(
        self, lease: Lease, prefill: Target, work: EngineRequest, taker: ResponseSink
    ) -> None:
        """The answer is the decode worker's; who fails first ends the other."""
        try:
            told = await self._introduction(lease, prefill)
            bodies = self._dialect.worker_bodies(
                work.body, prefill.url, told, random.randrange(ROOMS)
            )
            await self._both(lease, prefill, work, taker, *map(msgspec.json.encode, bodies))
        except RequestFailed:
            self._introduced.pop(prefill, None)  # the next life of a worker may say another
            raise

    async def _introduction(self, lease: Lease, prefill: Target) -> Body:
        """Asked once in the life of a prefill worker."""
        if prefill not in self._introduced:
            async with self._workers.get(lease, prefill, self._dialect.bootstrap_path) as answer:
                self._introduced[prefill] = read_object(await answer.read(), prefill)
        return self._introduced[prefill]

    async def _both(
        self,
        lease: Lease,
        target: Target,
        work: EngineRequest,
        taker: ResponseSink,
        asked: bytes,
        handed: bytes,
    ) -> None:
        try:
            async with asyncio.TaskGroup() as sides:
                prefill = sides.create_task(self._prefill(lease, target, work, taker, asked))
                async with (
                    _after_the_other(),
                    self._workers.post(lease, lease.decode, work, handed) as answer,
                ):
                    await taker.receive(answer, lease)
                await asyncio.wait([prefill], timeout=GRACE_S)
                prefill.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _prefill(
        self, lease: Lease, target: Target, work: EngineRequest, taker: ResponseSink, content: bytes
    ) -> None:
        """An answer that has begun needs the prefill worker no more."""
        try:
            async with (
                _after_the_other(),
                self._workers.post(lease, target, work, content) as answer,
            ):
                await answer.read()
            lease.report_prefilled()
        except RequestFailed as e:
            if not taker.started:
                raise
            log.warning("after its part was done: %s", e)


@asynccontextmanager
async def _after_the_other() -> AsyncIterator[None]:
    """A worker that answers with an error may do so for the end of the other, which then is told
    in its place."""
    try:
        yield
    except WorkerFailed as e:
        if e.body:
            await asyncio.sleep(GRACE_S)
        raise
