"""Keeps the decode workers full until every request of the input has a result on disk."""

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
from hpc_dynamo.config import Config, Policy, Role
from hpc_dynamo.dispatch import (
    RESERVED_FIELDS,
    BufferedResponse,
    Dispatcher,
    EngineRequest,
    PromptTokenizer,
    RequestBuilder,
    RequestContext,
)
from hpc_dynamo.engines import Body, adapter_fields, field_value
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.json_reader import is_null
from hpc_dynamo.launch.walltime import RequestDurations
from hpc_dynamo.messages import Progress

FIRST_RETRY_S, MAX_RETRY_S = 0.5, 10.0  # delay before a request is tried again
PREFILL_AHEAD = 4  # requests a prefill worker may have beyond what fills the decode workers

log = logging.getLogger(__name__)


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Part of the prompt tokens, as the engine counts them."""

    cached_tokens: int | None = 0


class TokenUsage(msgspec.Struct, frozen=True):
    """OpenAI's token counts."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptTokensDetails | None = None


def max_in_flight(config: Config) -> int:
    """Requests under way at a time: every sequence slot of the decode workers, and some more
    in prefill, so that a slot that falls free is taken at once."""
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
    """A worker died while it had a request."""

    def __init__(self, error: RequestFailed) -> None:
        what = f"a worker died while it had this request: {error.message}"
        super().__init__(what, status=error.status, body=error.body, hint=error.hint)


def prefill_workers(config: Config) -> int:
    """Return the number of workers that compute prompts."""
    pools = dict(config.topology.pools)
    return (pools.get(Role.prefill) or pools[Role.aggregated]).workers


class BatchRunner:
    """One attempt at a batch.

    `prefill_ready` returns how many of the workers that compute prompts are ready.
    """

    def __init__(
        self,
        config: Config,
        requests: BatchInput,
        results: Ledger,
        dispatcher: Dispatcher,
        process_of: Callable[[int], object | None],
        prompts: PromptTokenizer | None = None,
        prefill_ready: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        """`alive` returns the present life of a worker by its rank, None if it has none."""
        self._alive = process_of
        self._config, self._requests = config, requests
        self._ledger, self._dispatcher = results, dispatcher
        self._builder = RequestBuilder(config, prompts)
        by_cache = config.router.policy is Policy.kv
        self._prefill = prefill_workers(config) if by_cache else 0, prefill_ready
        left = results.unfinished(requests)
        self._left, self._resumed = left, len(requests.entries) - len(left)
        self.in_flight = min(max_in_flight(config), len(left))  # at most
        self._stopping = False
        self.durations = RequestDurations()
        self._began = time.monotonic()
        self._done = self._failed = self._running = 0
        self._prompt_tokens = self._completion_tokens = self._cached_tokens = 0

    def stop(self) -> None:
        """Begin no further request; those under way may end."""
        self._stopping = True

    async def run(self) -> bool:
        """True when every request has a result."""
        self._began = time.monotonic()
        total = len(self._requests.entries)
        with self._requests.open() as reader:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._ledger.write(), name="ledger")
                order = PrefixOrder(self._left, reader, *self._prefill)
                bounded = group.create_task(
                    self._builder.limit_tokenizer_memory(), name="tokenizer"
                )
                suspects = await self._run_all(reader, order, self.in_flight, fails=False)
                await self._retry_apart(reader, suspects)
                writer.cancel()
                bounded.cancel()
        return self._resumed + self._done + self._failed == total

    async def _retry_apart(self, reader: RequestReader, suspects: list[RequestEntry]) -> None:
        if suspects:
            what = "%d requests were under way when a worker died; they are tried again apart"
            log.warning(what, len(suspects))

        async def run(group: Sequence[RequestEntry], fails: bool) -> list[RequestEntry]:
            at_once = min(len(group), max_in_flight(self._config))
            order = PrefixOrder(group, reader, 0, lambda: 0)
            return await self._run_all(reader, order, at_once, fails=fails)

        await retry_isolated(suspects, run, max_solo_attempts(self._config))

    async def _run_all(
        self, reader: RequestReader, order: PrefixOrder, at_once: int, *, fails: bool
    ) -> list[RequestEntry]:
        """Run these requests until they have results. Return those that were running when a worker
        died; they have no result unless `fails`."""
        suspects = list[RequestEntry]()

        async def work() -> None:
            while taken := await order.take():
                if self._stopping:
                    return
                if not await self._finish(reader, taken.entry, fails=fails):
                    suspects.append(taken.entry)
                order.done(taken)

        async with asyncio.TaskGroup() as workers:
            for _ in range(at_once):
                workers.create_task(work())
        return suspects

    async def _finish(self, reader: RequestReader, entry: RequestEntry, *, fails: bool) -> bool:
        """Run a request until it has a result. Return False if a worker died, unless `fails`."""
        self._running += 1
        began = time.monotonic()
        try:
            answer = await self._persist(entry, await self._prepare(*reader.read(entry)))
            await self._ledger.record(ledger.success_line(entry.custom_id, answer.content))
            self._done += 1
            self._count(answer.body)
        except RequestFailed as e:
            if isinstance(e, _WorkerDied) and not fails:
                log.warning("%s: %s", entry.custom_id, e)
                return False
            await self._fail(entry, e)
        finally:
            self._running -= 1
        self.durations.add(time.monotonic() - began)
        return True

    async def _fail(self, entry: RequestEntry, error: RequestFailed) -> None:
        await self._ledger.record(ledger.failure_line(entry.custom_id, error))
        self._failed += 1
        log.warning("%s failed: %s", entry.custom_id, error)

    async def _prepare(self, path: str, given: Body) -> EngineRequest:
        """Return the request with the batch's defaults, for the run's model or an adapter."""
        unset = {k: v for k, v in self._config.batch.body_defaults.items() if is_null(given, k)}
        body = {k: v for k, v in given.items() if k not in RESERVED_FIELDS} | unset
        model, asked = self._config.model, field_value(body.get("model"))
        adapter = asked if isinstance(asked, str) and asked in model.lora else None
        body["model"] = adapter or model.served_name
        body |= adapter_fields(self._config, adapter) if adapter else {}
        about = RequestContext(adapter=adapter, timeout_s=self._config.batch.request_timeout_s)
        return await self._builder.build(path, msgspec.json.encode(body), body, about)

    async def _persist(self, entry: RequestEntry, work: EngineRequest) -> BufferedResponse:
        """Try, and retry if that can help. Raises _WorkerDied without a retry."""
        backoff = Backoff(FIRST_RETRY_S, MAX_RETRY_S)
        for left in reversed(range(self._config.batch.max_retries + 1)):
            try:
                return await self._try(work)
            except RequestFailed as e:
                if await worker_died(e, self._alive):
                    raise _WorkerDied(e) from e
                if e.final or not left:
                    raise
                log.warning("%s is tried again: %s", entry.custom_id, e)
                await asyncio.sleep(backoff.failed())
        raise AssertionError("the last try returns or raises")

    async def _try(self, work: EngineRequest) -> BufferedResponse:
        timeout_s, answer = self._config.batch.request_timeout_s, BufferedResponse()
        try:
            async with asyncio.timeout(timeout_s):
                await self._dispatcher.run(work, answer)
        except TimeoutError as e:
            what = f"no answer within {timeout_s:.0f} s (batch.request_timeout_s)"
            raise RequestFailed(what, status=504) from e
        return answer

    def _count(self, answer: Body) -> None:
        usage = (
            msgspec.json.decode(answer.get("usage", b"{}"), type=TokenUsage | None) or TokenUsage()
        )
        self._prompt_tokens += usage.prompt_tokens
        self._completion_tokens += usage.completion_tokens or 0
        if usage.prompt_tokens_details:
            self._cached_tokens += usage.prompt_tokens_details.cached_tokens or 0

    def progress(self) -> Progress:
        return Progress(
            total=len(self._requests.entries),
            done=self._done + self._resumed,
            failed=self._failed,
            resumed=self._resumed,
            running=self._running,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            elapsed_s=time.monotonic() - self._began,
        )
