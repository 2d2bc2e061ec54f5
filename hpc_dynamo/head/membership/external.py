"""External workers: engines that hpc_dynamo did not start, for `hpc-dynamo route`.

An engine is ready once it has generated a token, or listed its models if `model.name` is not
set. Its /health is checked every second, and its progress as in agents if it publishes metrics.
After two failures in a row, or a hang, it is removed until it is ready again. One of another
version than the others is removed as long as they are there.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from msgspec.structs import asdict, replace

from hpc_dynamo.agent.events import KvEventRelay
from hpc_dynamo.agent.probe import (
    NO_MODELS,
    EngineModels,
    is_alive,
    not_serving_reason,
    query_models,
)
from hpc_dynamo.agent.progress_watch import ProgressWatch, WatchedEngine
from hpc_dynamo.config import Config, ParallelSizes, Role
from hpc_dynamo.engines import EventEndpoints, engine, pd_protocol_of, probe_fields
from hpc_dynamo.head.membership.versions import VersionCheck
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import KvEvents, WorkerReport, WorkerState
from hpc_dynamo.router import RequestRouter, target_key

CHECK_INTERVAL_S = 1.0
TIMEOUT_S = 10.0  # a busy engine may answer /health late
MAX_FAILURES = 2  # in a row
LOOPBACK = "127.0.0.1"

log = logging.getLogger(__name__)


class ExternalWorkers:
    """Workers of `route.engines`, see WorkerDirectory. `group` runs the relays of KV events."""

    def __init__(
        self,
        config: Config,
        router: RequestRouter,
        http: HttpClient,
        group: asyncio.TaskGroup,
        address: str = LOOPBACK,
    ) -> None:
        self.address = address
        self._model, self._engines = config.model.name, config.route.engines
        self._pd_protocol, self._versions = pd_protocol_of(config.engine), VersionCheck(config)
        pairs = [pair.split("|") for pair in config.route.events]
        ranks = config.route.data_parallel
        dp_ranks = tuple(range(ranks)) if ranks > 1 else ()
        ends = (EventEndpoints(live, replay, dp_ranks) for live, replay in pairs)
        self._events = dict(enumerate(ends))
        if not config.router.kv_events:
            self._events.clear()
        adapter = engine(config.engine.name)
        self._metrics, self._hang_timeout_s = adapter.metrics, config.engine.hang_timeout_s
        self._watches = dict[int, ProgressWatch]()  # by rank
        self._serving = dict[int, WorkerReport]()  # also those that others refuse
        self._router, self._http = router, http
        self._relay = KvEventRelay("", self._receive_kv_events, group)
        self.workers = {
            rank: WorkerReport(
                rank=rank,
                role=role,
                node=0,
                host=urlsplit(url).netloc,
                state=WorkerState.starting,
                url=url,
                caches=adapter.prefix_caches(config.engine, role, ParallelSizes(data=ranks)),
            )
            for rank, (role, url) in enumerate(self._engines)
        }

    def in_order(self) -> tuple[WorkerReport, ...]:
        return tuple(self.workers[rank] for rank in sorted(self.workers))

    async def set_asleep(self, rank: int, asleep: bool) -> None:
        self.workers[rank] = replace(self.workers[rank], asleep=asleep)
        if rank in self._watches:
            self._watches[rank].asleep = asleep

    async def watch(self) -> None:
        """Check all engines until cancelled."""
        async with asyncio.TaskGroup() as group:
            for rank, (role, url) in enumerate(self._engines):
                group.create_task(self._watch_engine(rank, role, url), name=f"worker-{rank}")

    async def _watch_engine(self, rank: int, role: Role, url: str) -> None:
        state = WorkerState.starting
        while True:
            began = time.monotonic()
            while reason := await self._not_serving_reason(role, url):
                self._serving.pop(rank, None)
                self._update(rank, state, f"{url} {reason}")
                await asyncio.sleep(CHECK_INTERVAL_S)
            models = await self._query_models(url)
            self._serving[rank] = replace(
                self.workers[rank], state=WorkerState.ready, version=models.version
            )
            if reason := self._refusal(rank):
                await asyncio.sleep(CHECK_INTERVAL_S)
            else:
                async with self._routed(rank, role, url, time.monotonic() - began, models):
                    reason = await self._wait_for_failure(rank, role, url)
            state = WorkerState.failed
            self._update(rank, state, f"{url} {reason}")

    @asynccontextmanager
    async def _routed(
        self, rank: int, role: Role, url: str, start_s: float, models: EngineModels
    ) -> AsyncIterator[None]:
        """Keep a worker in the router, with its KV events, while the context is open."""
        self._update(rank, WorkerState.ready, start_s=start_s, models=models)
        caches = self.workers[rank].caches
        await self._router.add_worker(rank, role, url, caches=caches)
        try:
            async with self._relay.follow(rank, self._events.get(rank)):
                for dp_rank in caches.dp_ranks:  # earlier events were not received
                    self._relay.replay(rank, 0, dp_rank)
                yield
        finally:
            self._router.remove_worker(rank)

    def _update(
        self,
        rank: int,
        state: WorkerState,
        detail: str = "",
        *,
        models: EngineModels = NO_MODELS,
        start_s: float = 0.0,
    ) -> None:
        """Update a worker's report and log it if state or detail changed. It is awake then."""
        before, fields = self.workers[rank], asdict(models)
        self.workers[rank] = replace(
            before, state=state, detail=detail, start_s=start_s, asleep=False, **fields
        )
        if (before.state, before.detail) != (state, detail):
            log.info("worker %d (%s) at %s: %s %s", rank, before.role, before.url, state, detail)

    async def _receive_kv_events(self, events: KvEvents) -> None:
        state = self._router.kv_state
        key = target_key(events.rank, events.dp_rank)
        first_missing = state.receive_events(key, events.seq, events.payload)
        if first_missing is not None:
            self._relay.replay(events.rank, first_missing, events.dp_rank)

    # Queries to an engine, with a deadline.

    async def _not_serving_reason(self, role: Role, url: str) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                fields = probe_fields(self._pd_protocol, role)
                return await not_serving_reason(self._http, url, self._model, fields)
        return f"does not answer within {TIMEOUT_S:.0f} s"

    async def _query_models(self, url: str) -> EngineModels:
        with suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                return await query_models(self._http, url)
        return NO_MODELS

    async def _wait_for_failure(self, rank: int, role: Role, url: str) -> str:
        """Return the reason, once an engine does not answer /health, hangs or is refused."""
        model = self._model or next(iter(self.workers[rank].models), "")
        fields = probe_fields(self._pd_protocol, role)
        watched = WatchedEngine(url, model, fields, self._metrics)
        watch = self._watches[rank] = ProgressWatch(self._http, watched, self._hang_timeout_s)
        checks = [asyncio.create_task(self._wait_until_unusable(rank, url))]
        try:
            if model and await watch.has_counters():
                checks.append(asyncio.create_task(watch.wait_for_hang()))
            done, _ = await asyncio.wait(checks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for check in checks:
                check.cancel()
            await asyncio.gather(*checks, return_exceptions=True)
            del self._watches[rank]

    async def _wait_until_unusable(self, rank: int, url: str) -> str:
        failures, refusal = 0, ""
        while failures < MAX_FAILURES and not refusal:
            await asyncio.sleep(CHECK_INTERVAL_S)
            failures = 0 if await self._is_alive(url) else failures + 1
            refusal = self._refusal(rank)
        return refusal or "no longer answers"

    def _refusal(self, rank: int) -> str:
        """Return why the other engines refuse this one because of its version."""
        return self._versions.conflicts(self._serving.values()).get(rank, "")

    async def _is_alive(self, url: str) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                return await is_alive(self._http, url)
        return False
