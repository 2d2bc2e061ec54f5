"""Continuous batching: one loop, one step at a time, for all answers at once.

As in vLLM's scheduler every running answer gets a token a step, the rest of the step's token
budget goes to prompts in their order of arrival (chunked prefill), and a waiting prompt is
admitted when its blocks are there. Unlike there nothing is ever preempted: the blocks for the
longest possible answer are taken at the beginning.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hpc_dynamo.errors import HpcDynamoError, KvTransferError
from hpc_dynamo.simulator.metrics import Metrics
from hpc_dynamo.simulator.model import Model
from hpc_dynamo.simulator.sequence import Answer, Job, Source
from hpc_dynamo.simulator.timing import Timing

log = logging.getLogger(__name__)

CATCH_UP_S = 0.002  # timers of the event loop are late by up to so much; the next step makes up


@dataclass(frozen=True)
class Limits:
    """Sizes of the modelled engine, by vLLM's names where it has them."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    mean_output_tokens: int = 128
    time_scale: float = 1.0
    recompute: bool = False  # a prompt whose blocks could not be pulled, instead of failing


class Handover(Protocol):
    """What the scheduler needs of handover.NixlHandover."""

    async def pull(self, source: Source, local: Sequence[int], skip: int) -> None: ...
    async def settle(self, local: Sequence[int]) -> None: ...
    async def decline(self, source: Source) -> None: ...
    def lease(self, job: Job, blocks: list[int]) -> dict[str, object]: ...


@dataclass(frozen=True)
class Batch:
    """One step: a token for each of `decodes`, and chunks of prompts with their sizes."""

    decodes: list[Answer]
    chunks: list[tuple[Answer, int]]

    def seconds(self, timing: Timing) -> float:
        tokens = sum(n for _, n in self.chunks)
        attended = sum(n * (answer.computed + n / 2) for answer, n in self.chunks)
        context = sum(len(answer.tokens) for answer in self.decodes)
        return timing.step_s(tokens, attended, len(self.decodes), context)


class Scheduler:
    """Owns all answers between `submit` and their end; `run` is the task that advances them."""

    def __init__(
        self,
        limits: Limits,
        timing: Timing,
        model: Model,
        metrics: Metrics,
    ) -> None:
        self._limits, self._timing, self._model = limits, timing, model
        self._metrics = metrics
        self.handover: Handover | None = None  # set by the owner of a rank that has one
        self._waiting = deque[Answer]()
        self._pulled = deque[Answer]()  # their blocks are here; they wait for a slot only
        self._prefilling = list[Answer]()
        self._decoding = list[Answer]()
        self._pulling = 0
        self._work = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    def submit(self, job: Job, n: int = 1) -> None:
        """Queue `n` answers to a prompt. Then wait for `job.changed` and read `job.choices`."""
        now = asyncio.get_running_loop().time()
        hashes = self._model.hashes(job.prompt)
        size, mean = self._model.block_size, self._limits.mean_output_tokens
        job.choices = [
            Answer(job, i, list(job.prompt), list(hashes), now, size, mean) for i in range(n)
        ]
        first, *others = job.choices
        if job.source and self.handover:
            first.source = job.source  # the blocks are given once; siblings come when they are here
            others = []
        self._waiting.extend([first, *others])
        self.wake()

    def abort(self, job: Job) -> None:
        """The client is gone: frees slots and blocks. After the end it does nothing."""
        for answer in job.choices:
            if answer.finish is None:
                self._drop(answer, "abort")

    def wake(self) -> None:
        """Something changed that may let a waiting prompt in."""
        self._work.set()

    def measure(self) -> None:
        """Bring the gauges up to date."""
        self._metrics.running = len(self._prefilling) + len(self._decoding)
        self._metrics.waiting = len(self._waiting) + len(self._pulled) + self._pulling
        self._metrics.kv_usage = self._model.pool.usage

    async def run(self) -> None:
        """The step loop, until cancelled."""
        loop = asyncio.get_running_loop()
        clock = loop.time()
        async with self._tasks:
            while True:
                self._admit()
                batch = self._plan()
                if not batch.decodes and not batch.chunks:
                    self._work.clear()
                    await self._work.wait()
                    clock = loop.time()
                    continue
                begin = max(clock, loop.time() - CATCH_UP_S)
                clock = begin + batch.seconds(self._timing) * self._limits.time_scale
                await asyncio.sleep(max(0.0, clock - loop.time()))  # the modelled computation
                self._apply(batch, loop.time())

    @property
    def _has_slot(self) -> bool:
        return len(self._prefilling) + len(self._decoding) < self._limits.max_num_seqs

    def _admit(self) -> None:
        while self._has_slot and self._pulled:
            self._prefilling.append(self._pulled.popleft())
        while self._has_slot and self._waiting and self._model.place(self._waiting[0]):
            answer = self._waiting.popleft()
            self._metrics.prefix_queries += answer.prompt_tokens
            self._metrics.prefix_hits += answer.cached
            self._metrics.queue.observe(asyncio.get_running_loop().time() - answer.arrived)
            if answer.source and self.handover:
                self._pulling += 1
                self._tasks.create_task(self._pull(answer, answer.source, self.handover))
            else:
                self._prefilling.append(answer)

    def _plan(self) -> Batch:
        budget = self._limits.max_num_batched_tokens - len(self._decoding)
        chunks = list[tuple[Answer, int]]()
        for answer in self._prefilling:
            size = min(budget, answer.prompt_tokens - answer.computed)
            if size <= 0:
                break
            chunks.append((answer, size))
            budget -= size
        return Batch(self._decoding, chunks)

    def _apply(self, batch: Batch, now: float) -> None:
        for answer in batch.decodes:
            if answer.finish is None:
                self._model.decode(answer)
                self._metrics.itl.observe(now - answer.stepped)
                self._speak(answer, now)
        for answer, size in batch.chunks:
            if answer.finish is None:
                self._model.prefill(answer, size)
                if answer.computed == answer.prompt_tokens:
                    self._begin(answer, now)
        self._prefilling = [a for a in self._prefilling if not a.finish and not a.speaker]
        begun = [a for a, _ in batch.chunks if a.speaker]
        self._decoding = [a for a in batch.decodes + begun if a.finish is None]

    def _begin(self, answer: Answer, now: float) -> None:
        self._model.begin(answer)
        self._metrics.prompt_tokens += answer.prompt_tokens
        self._metrics.ttft.observe(now - answer.arrived)
        self._speak(answer, now)

    def _speak(self, answer: Answer, now: float) -> None:
        answer.stepped = now
        answer.speak()
        self._metrics.generation_tokens += 1
        if answer.finish is not None:
            self._metrics.e2e.observe(now - answer.arrived)
            self._end(answer)
        elif answer.job.streaming:
            answer.job.changed.set()

    def _end(self, answer: Answer) -> None:
        kept = 0
        if answer.job.produce and self.handover:
            kept = answer.prompt_blocks
            answer.job.handover = self.handover.lease(answer.job, answer.blocks[:kept])
        self.free(answer.take_blocks()[kept:])
        self._close(answer)

    def _drop(self, answer: Answer, finish: str, error: HpcDynamoError | None = None) -> None:
        """End an answer early, wherever it is. While it is pulled the pull keeps its blocks."""
        answer.finish, answer.error = finish, error
        if answer in self._waiting:
            self._waiting.remove(answer)
            if answer.source and self.handover:
                self._tasks.create_task(self.handover.decline(answer.source))
        for queue in (self._pulled, self._prefilling, self._decoding):
            if answer in queue:
                queue.remove(answer)
                self.free(answer.take_blocks())
        self._close(answer)

    def _close(self, answer: Answer) -> None:
        self._metrics.finished[str(answer.finish)] += 1
        answer.job.changed.set()

    def free(self, blocks: list[int]) -> None:
        """Let go of blocks that an ended answer left behind."""
        self._model.pool.release(blocks)
        self.wake()

    async def _pull(self, answer: Answer, source: Source, handover: Handover) -> None:
        """Fetch the blocks of a prompt that another rank computed, but for those we have."""
        blocks = answer.blocks[: answer.prompt_blocks]
        hits = answer.cached // self._model.block_size
        self._metrics.external_queries += answer.prompt_tokens - answer.cached
        try:
            await handover.pull(source, blocks, hits)
        except KvTransferError as e:
            log.warning("request %s: %s", answer.job.id, e)
            lost = answer.take_blocks()
            self._lost(answer, e)
            await handover.settle(blocks[hits:])  # NIXL may not have given up yet
            self.free(lost)
        else:
            self._received(answer, blocks[hits:])
        finally:
            self._pulling -= 1
            self.wake()

    def _received(self, answer: Answer, blocks: list[int]) -> None:
        self._metrics.external_hits += answer.prompt_tokens - answer.cached
        self._model.received(answer, blocks)
        if answer.finish is None:
            self._pulled.append(answer)
        else:  # aborted meanwhile
            self.free(answer.take_blocks())
        self._waiting.extendleft(a for a in answer.job.choices[1:] if a.finish is None)

    def _lost(self, answer: Answer, error: KvTransferError) -> None:
        unfinished = [a for a in answer.job.choices if a.finish is None]
        if self._limits.recompute:
            answer.source = None
            self._waiting.extendleft(reversed(unfinished))
        else:
            for each in unfinished:
                self._drop(each, "error", error)
