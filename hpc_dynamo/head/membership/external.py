"""Engines that somebody else started: here while they answer.

A worker joins the router when it has served a token, or where no name of its model is known
(model.name) when it has said which models it has; it leaves when it fails to answer twice in a
row, and joins again as it joined. Nobody else tells of it, so it is asked, for ever.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from msgspec.structs import replace

from hpc_dynamo.agent.events import KvEventRelay
from hpc_dynamo.agent.probe import (
    NO_MODELS,
    EngineModels,
    is_alive,
    not_serving_reason,
    query_models,
)
from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines import EventEndpoints, pd_protocol_of, probe_fields
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import KvEvents, WorkerReport, WorkerState
from hpc_dynamo.router import Router

ASK_S = 1.0
ANSWER_S = 10.0  # a busy engine may be slow to say that it lives
FAILURES = 2  # in a row: it is gone
LOOPBACK = "127.0.0.1"

log = logging.getLogger(__name__)


class ExternalWorkers:
    """See head.work.Members. `group` holds the tasks that follow the engines' KV events."""

    def __init__(
        self,
        config: Config,
        router: Router,
        http: HttpClient,
        group: asyncio.TaskGroup,
        address: str = LOOPBACK,
    ) -> None:
        self.address = address
        self._name, self._engines = config.model.name, config.route.engines
        self._dialect = pd_protocol_of(config)
        pairs = [pair.split("|") for pair in config.route.events]
        self._events = dict(enumerate(EventEndpoints(*pair) for pair in pairs))
        if not config.router.kv_events:
            self._events.clear()
        self._router, self._http = router, http
        self._relay = KvEventRelay("", self._learn, group)
        self.workers = {
            rank: WorkerReport(
                rank=rank,
                role=role,
                node=0,
                host=urlsplit(url).netloc,
                state=WorkerState.starting,
                url=url,
            )
            for rank, (role, url) in enumerate(self._engines)
        }

    def in_order(self) -> tuple[WorkerReport, ...]:
        return tuple(self.workers[rank] for rank in sorted(self.workers))

    async def watch(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for rank, (role, url) in enumerate(self._engines):
                group.create_task(self._keep(rank, role, url), name=f"worker-{rank}")

    async def _keep(self, rank: int, role: Role, url: str) -> None:
        state = WorkerState.starting
        while True:
            began = time.monotonic()
            while why := await self._why_not(role, url):
                self._tell(rank, state, f"{url} {why}")
                await asyncio.sleep(ASK_S)
            async with self._life(rank, role, url, time.monotonic() - began):
                await self._while_it_lives(url)
            state = WorkerState.failed
            self._tell(rank, state, f"{url} does not answer any more")

    @asynccontextmanager
    async def _life(self, rank: int, role: Role, url: str, start_s: float) -> AsyncIterator[None]:
        """The router knows it, and what it tells of its cache."""
        served = await self._served(url)
        self._tell(rank, WorkerState.ready, start_s=start_s, served=served)
        await self._router.add_worker(rank, role, url)
        try:
            async with self._relay.follow(rank, self._events.get(rank)):
                self._relay.replay(rank, 0)  # who begins to listen comes late
                yield
        finally:
            self._router.remove_worker(rank)

    def _tell(
        self,
        rank: int,
        state: WorkerState,
        detail: str = "",
        *,
        served: EngineModels = NO_MODELS,
        start_s: float = 0.0,
    ) -> None:
        """The status, and the log where that is news."""
        before = self.workers[rank]
        self.workers[rank] = replace(
            before,
            state=state,
            detail=detail,
            models=served.models,
            adapters=dict(served.adapters),
            context_tokens=served.context_tokens,
            operations=served.operations,
            start_s=start_s,
        )
        if (before.state, before.detail) != (state, detail):
            log.info("worker %d (%s) at %s: %s %s", rank, before.role, before.url, state, detail)

    async def _learn(self, told: KvEvents) -> None:
        missed = self._router.kv_state.receive_events(told.rank, told.seq, told.payload)
        if missed is not None:
            self._relay.replay(told.rank, missed)

    # What an engine is asked, with a deadline.

    async def _why_not(self, role: Role, url: str) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                fields = probe_fields(self._dialect, role)
                return await not_serving_reason(self._http, url, self._name, fields)
        return f"says nothing for {ANSWER_S:.0f} s"

    async def _served(self, url: str) -> EngineModels:
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                return await query_models(self._http, url)
        return NO_MODELS

    async def _while_it_lives(self, url: str) -> None:
        failures = 0
        while failures < FAILURES:
            await asyncio.sleep(ASK_S)
            failures = 0 if await self._lives(url) else failures + 1

    async def _lives(self, url: str) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                return await is_alive(self._http, url)
        return False
