"""Runs a batch: keeps the decode workers full until every request has a result on disk."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from hpc_dynamo.backoff import Backoff
from hpc_dynamo.batch import ledger
from hpc_dynamo.batch.crash_isolation import max_solo_attempts, retry_isolated, worker_died
from hpc_dynamo.batch.input_file import BatchInput, RequestEntry, RequestReader
from hpc_dynamo.batch.ledger import Ledger
from hpc_dynamo.batch.prefix_order import PrefixOrder
from hpc_dynamo.config import Config, Policy, Role, Topology
from hpc_dynamo.dispatch import (
    RESERVED_FIELDS,
    BufferedResponse,
    Dispatcher,
    EngineRequest,
    PromptTokenizer,
    RequestBuilder,
    RequestContext,
    UnhandledException,
)
from hpc_dynamo.engines import Body, adapter_fields, field_value
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.json_reader import is_null
from hpc_dynamo.launch.walltime import RequestDurations
from hpc_dynamo.messages import Progress

FIRST_RETRY_S, MAX_RETRY_S = 0.5, 10.0  # delay before a retry, doubled for each
# Requests per prefill worker in addition to those that fill the decode workers.
PREFILL_AHEAD = 4

log = logging.getLogger(__name__)


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Engine's count of cached prompt tokens."""

    cached_tokens: int | None = 0


class TokenUsage(msgspec.Struct, frozen=True):
    """Token counts of a response, in OpenAI's format."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptTokensDetails | None = None


def max_in_flight(config: Config) -> int:
    """Return the maximum number of concurrent requests.

    They fill every sequence slot of the decode workers, and a few more are in prefill, so that a
    free slot is used at once.
    """
    if config.batch.concurrency is not None:
        return config.batch.concurrency
    pools = dict(config.topology.pools)
    decode = pools.get(Role.decode) or pools[Role.aggregated]
    prefill = pools.get(Role.prefill)
    return (
        decode.workers * config.engine.max_num_seqs
        + (prefill.workers if prefill else 1) * PREFILL_AHEAD
    )


class _WorkerDied(RequestFailed):
    """A worker died while it executed a request."""

    def __init__(self, error: RequestFailed) -> None:
        what = f"a worker died during this request: {error.message}"
        super().__init__(what, status=error.status, body=error.body, hint=error.hint)


def prefill_workers(topology: Topology) -> int:
    """Return the number of workers that compute prompts."""
    pools = dict(topology.pools)
    return (pools.get(Role.prefill) or pools[Role.aggregated]).workers


class BatchRunner:
    """One attempt at a batch.

    `remaining`: the requests without a result. `process_of` returns an object that identifies the
    running process of a rank, None if there is none. `prefill_ready` returns the number of ready
    workers that compute prompts. `max_context_tokens` returns the longest sequence that any worker
    accepts, 0 if unknown.
    """

    def __init__(
        self,
        config: Config,
        requests: BatchInput,
        remaining: Sequence[RequestEntry],
        results: Ledger,
        dispatcher: Dispatcher,
        process_of: Callable[[int], object | None],
        tokenizer: PromptTokenizer | None = None,
        prefill_ready: Callable[[], int] = lambda: sys.maxsize,
        max_context_tokens: Callable[[], int] = lambda: 0,
    ) -> None:
        self._process_of, self._max_context_tokens = process_of, max_context_tokens
        self._config, self._requests = config, requests
        self._ledger, self._dispatcher = results, dispatcher
        self._builder = RequestBuilder(config, tokenizer)
        by_cache = config.router.policy is Policy.kv
        self._prefill = prefill_workers(config.topology) if by_cache else 0, prefill_ready
        self._remaining = remaining
        self._resumed = len(requests.entries) - len(self._remaining)
        self.in_flight = min(max_in_flight(config), len(self._remaining))
        self._stopping = False
        self.durations = RequestDurations()
        self._started_at = time.monotonic()
        self._done = self._failed = self._running = 0
        self._prompt_tokens = self._completion_tokens = self._cached_tokens = 0

    def stop(self) -> None:
        """Start no more requests; those in progress may end."""
        self._stopping = True

    async def run(self) -> bool:
        """Run the batch; return True if every request has a result."""
        self._started_at = time.monotonic()
        total = len(self._requests.entries)
        with self._requests.open() as reader:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._ledger.write(), name="ledger")
                order = PrefixOrder(self._remaining, reader, *self._prefill)
                limiter = group.create_task(
                    self._builder.limit_tokenizer_memory(), name="tokenizer"
                )
                suspects = await self._run_all(reader, order, self.in_flight, final=False)
                await self._retry_isolated(reader, suspects)
                writer.cancel()
                limiter.cancel()
        return self._resumed + self._done + self._failed == total

    async def _retry_isolated(self, reader: RequestReader, suspects: list[RequestEntry]) -> None:
        if suspects:
            log.warning("retrying %d requests that were running when a worker died", len(suspects))

        async def run(group: Sequence[RequestEntry], final: bool) -> list[RequestEntry]:
            concurrency = min(len(group), max_in_flight(self._config))
            order = PrefixOrder(group, reader, 0, lambda: 0)
            return await self._run_all(reader, order, concurrency, final=final)

        await retry_isolated(suspects, run, max_solo_attempts(self._config))

    async def _run_all(
        self, reader: RequestReader, order: PrefixOrder, concurrency: int, *, final: bool
    ) -> list[RequestEntry]:
        """Run requests until they have results; return those that were running when a worker died.

        If `final`, these have failed and are not returned.
        """
        suspects = list[RequestEntry]()

        async def run_requests() -> None:
            while taken := await order.take():
                if self._stopping:
                    return
                if not await self._finish(reader, taken.entry, final=final):
                    suspects.append(taken.entry)
                order.done(taken)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(run_requests())
        return suspects

    async def _finish(self, reader: RequestReader, entry: RequestEntry, *, final: bool) -> bool:
        """Run a request until it has a result.

        Return False if a worker died, except if `final`: then the request has failed.
        """
        self._running += 1
        started_at = time.monotonic()
        try:
            response = await self._execute(entry, await self._prepare(*reader.read(entry)))
            await self._ledger.record(ledger.success_line(entry.custom_id, response.content))
            self._done += 1
            self._count(response.body)
        except RequestFailed as e:
            if isinstance(e, _WorkerDied) and not final:
                log.warning("%s: %s", entry.custom_id, e)
                return False
            await self._fail(entry, e)
        finally:
            self._running -= 1
        self.durations.add(time.monotonic() - started_at)
        return True

    async def _fail(self, entry: RequestEntry, error: RequestFailed) -> None:
        await self._ledger.record(ledger.failure_line(entry.custom_id, error))
        self._failed += 1
        log.warning("%s failed: %s", entry.custom_id, error)

    async def _prepare(self, path: str, body: Body) -> EngineRequest:
        """Return the request with batch.body_defaults, for the run's model or an adapter."""
        defaults = {k: v for k, v in self._config.batch.body_defaults.items() if is_null(body, k)}
        body = {k: v for k, v in body.items() if k not in RESERVED_FIELDS} | defaults
        model, requested = self._config.model, field_value(body.get("model"))
        adapter = requested if isinstance(requested, str) and requested in model.lora else None
        body["model"] = adapter or model.served_name
        body |= adapter_fields(self._config, adapter) if adapter else {}
        context = RequestContext(
            adapter=adapter,
            max_context_tokens=self._max_context_tokens(),
            timeout_s=self._config.batch.request_timeout_s,
        )
        return await self._builder.build(path, msgspec.json.encode(body), body, context)

    async def _execute(self, entry: RequestEntry, request: EngineRequest) -> BufferedResponse:
        """Execute a request, with retries if they can help. Raises _WorkerDied without a retry."""
        backoff, before = Backoff(FIRST_RETRY_S, MAX_RETRY_S), None
        for retries in reversed(range(self._config.batch.max_retries + 1)):
            try:
                return await self._attempt(request)
            except RequestFailed as e:
                if isinstance(e, UnhandledException):
                    e.raise_if_repeated(before)
                elif await worker_died(e, self._process_of):
                    raise _WorkerDied(e) from e
                before = e
                if e.final or not retries:
                    raise
                log.warning("%s is retried: %s", entry.custom_id, e)
                await asyncio.sleep(backoff.failed())
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, request: EngineRequest) -> BufferedResponse:
        timeout_s, response = self._config.batch.request_timeout_s, BufferedResponse()
        try:
            async with asyncio.timeout(timeout_s):
                await self._dispatcher.run(request, response)
        except TimeoutError as e:
            what = f"no response within {timeout_s:.0f} s (batch.request_timeout_s)"
            raise RequestFailed(what, status=504) from e
        return response

    def _count(self, response: Body) -> None:
        usage = msgspec.json.decode(response.get("usage", b"null"), type=TokenUsage | None)
        usage = usage or TokenUsage()
        self._prompt_tokens += usage.prompt_tokens
        self._completion_tokens += usage.completion_tokens or 0
        if usage.prompt_tokens_details:
            self._cached_tokens += usage.prompt_tokens_details.cached_tokens or 0

    def progress(self) -> Progress:
        """Return the counts so far."""
        return Progress(
            total=len(self._requests.entries),
            done=self._done + self._resumed,
            failed=self._failed,
            resumed=self._resumed,
            running=self._running,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            elapsed_s=time.monotonic() - self._started_at,
        )
