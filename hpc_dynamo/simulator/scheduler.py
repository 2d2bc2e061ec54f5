"""Continuous batching: a loop of steps that advances all sequences together.

The rules are those of vLLM's scheduler (v1/core/sched/scheduler.py). Every running sequence gets
a token per step. The rest of the step's token budget goes to prompts in order of arrival (chunked
prefill). A waiting prompt is admitted while budget is left and its blocks are free. It finds the
blocks that are cached at that moment, including those that earlier prompts of the same step
compute. Unlike in vLLM nothing is preempted: admission reserves blocks for the longest possible
output.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from hpc_dynamo.errors import HpcDynamoError, KvTransferError
from hpc_dynamo.simulator.kv_handoff import NixlHandoff
from hpc_dynamo.simulator.metrics import SimulatorMetrics
from hpc_dynamo.simulator.model import SimulatedModel
from hpc_dynamo.simulator.sequence import OutputSequence, RemoteBlocks, SequenceGroup
from hpc_dynamo.simulator.step import SchedulerLimits, StepPlan
from hpc_dynamo.timing_model import TimingModel

log = logging.getLogger(__name__)

CATCH_UP_S = 0.002  # timer lateness that the next step makes up for


class Scheduler:
    """Owns all sequences between `submit` and their end. `run` is the task that advances them."""

    def __init__(
        self,
        limits: SchedulerLimits,
        timing: TimingModel,
        model: SimulatedModel,
        metrics: SimulatorMetrics,
    ) -> None:
        self._limits, self._timing, self.model = limits, timing, model
        self.metrics = metrics
        self.handoff: NixlHandoff | None = None  # set by the owner of a prefill or decode rank
        # Publishes KV events, if set.
        self.publish_events: Callable[[], Awaitable[None]] | None = None
        self._waiting = deque[OutputSequence]()
        self._pulled = deque[OutputSequence]()  # their blocks are here; they need only a slot
        self._prefilling = list[OutputSequence]()
        self._decoding = list[OutputSequence]()
        self._stalled = list[OutputSequence]()
        self._pulling = list[OutputSequence]()
        self._updated = dict[SequenceGroup, None]()  # to be notified at the end of the step
        self._last_step_at, self._hung = 0.0, False
        self._work = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    def submit(self, group: SequenceGroup, n: int = 1) -> None:
        """Queue `n` sequences of a prompt as `group.choices`. See `group.on_update`."""
        now = asyncio.get_running_loop().time()
        hashes = self.model.block_hashes(group.prompt, group.adapter)
        size, mean = self.model.block_size, self._limits.mean_output_tokens
        group.choices = [
            OutputSequence(group, i, list(group.prompt), list(hashes), now, size, mean)
            for i in range(n)
        ]
        queued = group.choices
        if group.remote_blocks and self.handoff:
            # Blocks are pulled once. The other choices follow when they are here.
            queued[0].remote_blocks, queued = group.remote_blocks, queued[:1]
        self._waiting.extend(queued)
        self.wake()

    def abort(self, group: SequenceGroup) -> None:
        """End a group whose client left and free its slots and blocks. Idempotent."""
        for sequence in group.choices:
            if sequence.finish_reason is None:
                self._end_early(sequence, "abort")
        if self.handoff:
            self.handoff.abort(group)

    def decline(self, remote: RemoteBlocks) -> None:
        """Notify the prefill rank that blocks are not needed, because the request was rejected."""
        if self.handoff:
            self._tasks.create_task(self.handoff.decline(remote))

    def hang(self) -> None:
        """Compute nothing more, without an error."""
        self._hung = True

    def wake(self) -> None:
        """Let the loop plan a step: blocks were freed, or events are to be published."""
        self._work.set()

    def reset_cache(self) -> bool:
        """Empty the prefix cache. If any block is in use, do nothing and return False."""
        self.wake()
        return self.model.reset_cache()

    def update_gauges(self) -> None:
        self.metrics.running = self._num_running
        pulling = sum(sequence.finish_reason is None for sequence in self._pulling)
        self.metrics.waiting = len(self._waiting) + len(self._pulled) + pulling
        self.metrics.kv_usage = self.model.pool.usage

    async def run(self) -> None:
        """Run the step loop until cancelled. After that no peer is notified of anything."""
        try:
            async with self._tasks:
                await self._loop()
        finally:
            self.handoff = None

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        clock = loop.time()
        while True:
            plan = self._plan_step()
            if self.publish_events:
                await self.publish_events()
            if not plan:
                self._work.clear()
                await self._work.wait()
                clock = loop.time()
                continue
            begin = max(clock, loop.time() - CATCH_UP_S)
            clock = begin + plan.seconds(self._timing) * self._limits.time_scale
            await asyncio.sleep(max(0.0, clock - loop.time()))  # the modelled computation
            self._apply(plan, loop.time())

    @property
    def ranks(self) -> "Sequence[Scheduler]":
        """Return the schedulers of all data-parallel ranks, this one first."""
        return (self,)

    @property
    def num_unfinished(self) -> int:
        waiting = len(self._waiting) + len(self._pulled) + len(self._pulling)
        return self._num_running + waiting

    @property
    def _num_running(self) -> int:
        return len(self._prefilling) + len(self._decoding) + len(self._stalled)

    @property
    def _has_slot(self) -> bool:
        return self._num_running < self._limits.max_num_seqs

    def _plan_step(self) -> StepPlan:
        """Plan decodes first, then prompts in progress, then waiting prompts."""
        if self._hung:
            return StepPlan([], 0)
        while self._has_slot and self._pulled:
            self._prefilling.append(self._pulled.popleft())
        budget = self._limits.max_num_batched_tokens - len(self._decoding)
        plan = StepPlan(self._decoding, budget)
        for sequence in self._prefilling:
            self._plan_prefill(sequence, plan)
        while self._has_slot and self._waiting and plan.budget > 0:
            if not self.model.allocate(self._waiting[0]):
                break
            self._admit(self._waiting.popleft(), plan)
        return plan

    def _admit(self, sequence: OutputSequence, plan: StepPlan) -> None:
        self.metrics.prefix_queries += sequence.prompt_tokens
        self.metrics.prefix_hits += sequence.cached_tokens
        if sequence.remote_blocks and self.handoff:
            self._pulling.append(sequence)
            pull = self._pull(sequence, sequence.remote_blocks, self.handoff)
            self._tasks.create_task(pull)
        else:
            self._prefilling.append(sequence)
            self._plan_prefill(sequence, plan)

    def _plan_prefill(self, sequence: OutputSequence, plan: StepPlan) -> None:
        if size := plan.add_prompt(sequence):
            self.model.write_full_blocks(sequence, size)

    def _apply(self, plan: StepPlan, now: float) -> None:
        """Apply the results of a step that has ended."""
        self._exit_if_injected(plan.decodes)
        decodes = self.model.advance_decodes(plan.decodes)
        self.metrics.itl.observe(now - self._last_step_at, len(decodes))
        self._last_step_at = now
        chunks = [(each, size) for each, size in plan.chunks if not each.finish_reason]
        for sequence, size in chunks:
            self.model.advance_prefill(sequence, size)
        started = [each for each, _ in chunks if each.computed_tokens == each.prompt_tokens]
        for sequence in started:
            self._start_output(sequence, now)
        self._generate([*decodes, *started])
        for _ in range(self._limits.tokens_per_step - 1):
            self._generate(self.model.advance_decodes(decodes))
        self._prefilling = [s for s in self._prefilling if not s.finish_reason and not s.generator]
        self._decoding = [s for s in [*decodes, *started] if s.finish_reason is None]
        self._stall_if_injected()
        self._notify()

    def _start_output(self, sequence: OutputSequence, now: float) -> None:
        self.model.start_output(sequence)
        self.metrics.prompt_tokens += sequence.prompt_tokens
        self.metrics.ttft.observe(now - sequence.arrived_at)

    def _generate(self, sequences: Sequence[OutputSequence]) -> None:
        self.metrics.generation_tokens += len(sequences)
        for sequence in sequences:
            sequence.append_token()
            if sequence.finish_reason is not None:
                self._finish(sequence, sequence.finish_reason)
            if sequence.group.streaming or sequence.finish_reason is not None:
                self._updated[sequence.group] = None

    def _notify(self) -> None:
        """Notify each group once per step, so that its choices' tokens go out together."""
        updated, self._updated = self._updated, {}
        for group in updated:
            group.on_update()

    def _exit_if_injected(self, sequences: Iterable[OutputSequence]) -> None:
        limit = self._limits.die_after_tokens
        if limit is not None and any(each.output_length >= limit for each in sequences):
            log.error("exiting because of --die-after-tokens")
            os._exit(1)

    def _stall_if_injected(self) -> None:
        limit = self._limits.stall_after_tokens
        if limit is not None:
            self._stalled += [each for each in self._decoding if each.output_length >= limit]
            self._decoding = [each for each in self._decoding if each.output_length < limit]

    def _finish(self, sequence: OutputSequence, reason: str) -> None:
        """Release the blocks of a finished sequence, except those kept for a decode worker."""
        kept, group = 0, sequence.group
        if group.keep_blocks and self.handoff and reason == "length":
            kept = sequence.prompt_blocks
            group.kv_transfer_params = self.handoff.lease(group, sequence.blocks[:kept])
        self.release(sequence.take_blocks()[kept:])
        self.metrics.finished[reason] += 1

    def _end_early(
        self, sequence: OutputSequence, reason: str, error: HpcDynamoError | None = None
    ) -> None:
        """End a sequence in any state. A pull in progress keeps its blocks until it ends."""
        sequence.finish_reason, sequence.error = reason, error
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            if sequence.remote_blocks:
                self.decline(sequence.remote_blocks)
        for queue in (self._pulled, self._prefilling, self._decoding, self._stalled):
            if sequence in queue:
                queue.remove(sequence)
                self.release(sequence.take_blocks())
        self.metrics.finished[reason] += 1

    def release(self, blocks: list[int]) -> None:
        """Release the blocks of a sequence or of a lease that has ended."""
        self.model.pool.release(blocks)
        self.wake()

    async def _pull(
        self, sequence: OutputSequence, remote: RemoteBlocks, handoff: NixlHandoff
    ) -> None:
        """Pull the blocks of a remote prompt that are not cached here."""
        blocks = sequence.blocks[: sequence.prompt_blocks]
        hits = sequence.cached_tokens // self.model.block_size
        try:
            await handoff.pull(remote, blocks, hits)
        except KvTransferError as e:
            log.warning("request %s: %s", sequence.group.id, e)
            lost = sequence.take_blocks()
            self._handle_failed_pull(sequence, e)
            await handoff.wait_until_idle(blocks[hits:])  # NIXL may still write into them
            self.release(lost)
        else:
            self._handle_pulled(sequence, blocks[hits:])
        finally:
            self._pulling.remove(sequence)
            self.wake()

    def _handle_pulled(self, sequence: OutputSequence, blocks: list[int]) -> None:
        self.metrics.external_hits += sequence.prompt_tokens - sequence.cached_tokens
        self.model.accept_pulled_blocks(sequence, blocks)
        if sequence.finish_reason is None:
            self._pulled.append(sequence)
        else:  # aborted during the pull
            self.release(sequence.take_blocks())
        others = sequence.group.choices[1:]
        self._waiting.extendleft(each for each in others if each.finish_reason is None)

    def _handle_failed_pull(self, sequence: OutputSequence, error: KvTransferError) -> None:
        unfinished = [each for each in sequence.group.choices if each.finish_reason is None]
        if self._limits.recompute:
            sequence.remote_blocks = None
            self._waiting.extendleft(reversed(unfinished))
        else:
            for each in unfinished:
                self._end_early(each, "error", error)
            sequence.group.on_update()
