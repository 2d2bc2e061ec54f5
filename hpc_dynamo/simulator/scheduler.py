"""Continuous batching: one loop, one step at a time, for all answers at once.

As in vLLM's scheduler (v1/core/sched/scheduler.py), every running answer gets a token a step. The
rest of the step's token budget goes to prompts in their order of arrival (chunked prefill). A
waiting prompt is admitted while budget is left and its blocks are free. It finds the cached blocks
of that moment, including those that prompts before it compute in the same step. Unlike vLLM,
nothing is preempted: the blocks for the longest possible answer are taken at admission.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Iterable, Sequence

from hpc_dynamo.errors import HpcDynamoError, KvTransferError
from hpc_dynamo.simulator.batch import Batch, Handover, Limits
from hpc_dynamo.simulator.events import Announcer
from hpc_dynamo.simulator.metrics import Metrics
from hpc_dynamo.simulator.model import Model
from hpc_dynamo.simulator.sequence import Answer, Job, Source
from hpc_dynamo.timing_model import TimingModel

log = logging.getLogger(__name__)

CATCH_UP_S = 0.002  # timers of the event loop are late by up to so much; the next step makes up


class Scheduler:
    """Owns all answers between `submit` and their end; `run` is the task that advances them."""

    def __init__(
        self,
        limits: Limits,
        timing: TimingModel,
        model: Model,
        metrics: Metrics,
    ) -> None:
        self._limits, self._timing, self._model = limits, timing, model
        self._metrics = metrics
        self.handover: Handover | None = None  # set by the owner of a rank that has one
        self.announcer: Announcer | None = None  # likewise
        self._waiting = deque[Answer]()
        self._pulled = deque[Answer]()  # their blocks are here; they wait for a slot only
        self._prefilling = list[Answer]()
        self._decoding = list[Answer]()
        self._stalled = list[Answer]()
        self._pulling = list[Answer]()
        self._news = dict[Job, None]()  # to be told at the end of the step
        self._stepped = 0.0  # when the last step ended
        self._work = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    def submit(self, job: Job, n: int = 1) -> None:
        """Queue `n` answers to a prompt, which come into `job.choices`; see `job.on_news`."""
        now = asyncio.get_running_loop().time()
        hashes = self._model.hashes(job.prompt, job.adapter)
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
        if self.handover:
            self.handover.give_up(job)

    def decline(self, source: Source) -> None:
        """A request was refused whose prompt's blocks another rank keeps for it."""
        if self.handover:
            self._tasks.create_task(self.handover.decline(source))

    def wake(self) -> None:
        """Something changed that may let a waiting prompt in, or is to be published."""
        self._work.set()

    def reset_cache(self) -> bool:
        """Forget all cached blocks, unless somebody holds one: then False."""
        self.wake()
        return self._model.reset()

    def measure(self) -> None:
        """Bring the gauges up to date."""
        self._metrics.running = self._running
        pulling = sum(answer.finish is None for answer in self._pulling)
        self._metrics.waiting = len(self._waiting) + len(self._pulled) + pulling
        self._metrics.kv_usage = self._model.pool.usage

    async def run(self) -> None:
        """The step loop, until cancelled. From then on nobody is told of anything."""
        try:
            async with self._tasks:
                await self._steps()
        finally:
            self.handover = None

    async def _steps(self) -> None:
        loop = asyncio.get_running_loop()
        clock = loop.time()
        while True:
            batch = self._schedule()
            if self.announcer:
                await self.announcer.announce()
            if not batch:
                self._work.clear()
                await self._work.wait()
                clock = loop.time()
                continue
            begin = max(clock, loop.time() - CATCH_UP_S)
            clock = begin + batch.seconds(self._timing) * self._limits.time_scale
            await asyncio.sleep(max(0.0, clock - loop.time()))  # the modelled computation
            self._apply(batch, loop.time())

    @property
    def _running(self) -> int:
        return len(self._prefilling) + len(self._decoding) + len(self._stalled)

    @property
    def _has_slot(self) -> bool:
        return self._running < self._limits.max_num_seqs

    def _schedule(self) -> Batch:
        """Plan one step: answers first, then started prompts, then waiting ones."""
        while self._has_slot and self._pulled:
            self._prefilling.append(self._pulled.popleft())
        batch = Batch(self._decoding, self._limits.max_num_batched_tokens - len(self._decoding))
        for answer in self._prefilling:
            self._compute(answer, batch)
        while self._has_slot and self._waiting and batch.budget > 0:
            if not self._model.place(self._waiting[0]):
                break
            self._admit(self._waiting.popleft(), batch)
        return batch

    def _admit(self, answer: Answer, batch: Batch) -> None:
        self._metrics.prefix_queries += answer.prompt_tokens
        self._metrics.prefix_hits += answer.cached
        self._metrics.queue.observe(asyncio.get_running_loop().time() - answer.arrived)
        if answer.source and self.handover:
            self._pulling.append(answer)
            self._tasks.create_task(self._pull(answer, answer.source, self.handover))
        else:
            self._prefilling.append(answer)
            self._compute(answer, batch)

    def _compute(self, answer: Answer, batch: Batch) -> None:
        """Give a prompt the remaining budget of the step."""
        size = batch.add(answer)
        if size:
            self._model.fill(answer, size)

    def _apply(self, batch: Batch, now: float) -> None:
        self._fail_on_purpose(batch.decodes)
        decodes = [answer for answer in batch.decodes if answer.finish is None]
        self._metrics.itl.observe(now - self._stepped, len(decodes))
        self._stepped = now
        for answer in decodes:
            self._model.decode(answer)
        for answer, size in batch.chunks:
            if answer.finish is None:
                self._model.prefill(answer, size)
        begun = [a for a, _ in batch.chunks if not a.finish and a.computed == a.prompt_tokens]
        for answer in begun:
            self._begin(answer, now)
        self._speak([*decodes, *begun], now)
        self._prefilling = [a for a in self._prefilling if not a.finish and not a.voice]
        self._decoding = [a for a in [*decodes, *begun] if a.finish is None]
        self._stall()
        self._tell()

    def _begin(self, answer: Answer, now: float) -> None:
        self._model.begin(answer)
        self._metrics.prompt_tokens += answer.prompt_tokens
        self._metrics.ttft.observe(now - answer.arrived)

    def _speak(self, answers: Sequence[Answer], now: float) -> None:
        self._metrics.generation_tokens += len(answers)
        for answer in answers:
            answer.speak()
            if answer.finish is not None:
                self._metrics.e2e.observe(now - answer.arrived)
                self._end(answer)
            if answer.job.streaming or answer.finish is not None:
                self._news[answer.job] = None

    def _tell(self) -> None:
        """Once a step and job, so that its choices' tokens go out together."""
        news, self._news = self._news, {}
        for job in news:
            job.on_news()

    def _fail_on_purpose(self, answers: Iterable[Answer]) -> None:
        most = self._limits.die_after_tokens
        if most is not None and any(answer.said >= most for answer in answers):
            log.error("dying on purpose (--die-after-tokens)")
            os._exit(1)

    def _stall(self) -> None:
        most = self._limits.stall_after_tokens
        if most is not None:
            self._stalled += [answer for answer in self._decoding if answer.said >= most]
            self._decoding = [answer for answer in self._decoding if answer.said < most]

    def _end(self, answer: Answer) -> None:
        kept = 0
        if answer.job.produce and self.handover and answer.finish == "length":
            kept = answer.prompt_blocks
            answer.job.handover = self.handover.lease(answer.job, answer.blocks[:kept])
        self.free(answer.take_blocks()[kept:])
        self._metrics.finished[str(answer.finish)] += 1

    def _drop(self, answer: Answer, finish: str, error: HpcDynamoError | None = None) -> None:
        """End an answer early, wherever it is. While it is pulled the pull keeps its blocks."""
        answer.finish, answer.error = finish, error
        if answer in self._waiting:
            self._waiting.remove(answer)
            if answer.source:
                self.decline(answer.source)
        for queue in (self._pulled, self._prefilling, self._decoding, self._stalled):
            if answer in queue:
                queue.remove(answer)
                self.free(answer.take_blocks())
        self._metrics.finished[finish] += 1

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
            self._pulling.remove(answer)
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
            answer.job.on_news()
