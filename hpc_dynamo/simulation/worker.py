"""A modelled engine that computes when events happen, instead of single tokens.

It follows the rules of simulator.scheduler. Each step generates one token per response, and uses
the rest of its budget for prompts in order. Sequences are admitted between steps, with KV blocks
for the whole response. Between two events (a new request, the end of a prompt or response), step
durations grow linearly, so that one timer covers all of them.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from hpc_dynamo.simulation.cache import CacheHold, SimulatedCache
from hpc_dynamo.simulation.step_run import StepRun
from hpc_dynamo.timing_model import TimingModel


@dataclass(frozen=True)
class EngineSizes:
    """Sizes of a modelled engine, see simulator.step.SchedulerLimits."""

    max_sequences: int = 64
    step_tokens: int = 2048
    cache_tokens: int = 65_536
    page_tokens: int = 16  # granularity of the KV cache
    transfer_s_per_token: float = 0.0  # KV transfer between two workers


def _nothing() -> None:
    pass


@dataclass(eq=False)
class ModelledSequence:
    """A sequence in a modelled engine.

    `on_first_token` and `on_done` are called at its first and last token. `on_pulled` is called
    when the prefill worker may release the prompt.
    """

    prompt_tokens: int
    response_tokens: int
    hashes: Sequence[int] = ()
    pulls_kv: bool = False
    keeps_kv: bool = False  # the prompt stays until `release_kv`, for another worker
    on_first_token: Callable[[], None] = _nothing
    on_done: Callable[[], None] = _nothing
    on_pulled: Callable[[], None] = _nothing
    cached_tokens: int = 0
    computed_tokens: int = 0
    published_blocks: int = 0  # blocks in the cache
    hold: CacheHold = field(default_factory=CacheHold)


class SimulatedWorker:
    """One engine, in the virtual time of the event loop."""

    def __init__(self, sizes: EngineSizes, timing: TimingModel, block: int) -> None:
        self._sizes, self.timing = sizes, timing
        self.cache = SimulatedCache(sizes.cache_tokens, block)
        self.on_store: Callable[[Sequence[int], Sequence[int]], None] = lambda hashes, new: None
        self._waiting, self._pulled = deque[ModelledSequence](), deque[ModelledSequence]()
        self._prefilling = list[ModelledSequence]()
        self._decoding = list[tuple[int, int, ModelledSequence]]()  # heap: (last step, order, …)
        self._pulling = 0
        self._steps = self._context = self._count = 0
        self._step_run: StepRun | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._pulled) + self._pulling

    def submit(self, sequence: ModelledSequence) -> None:
        self._waiting.append(sequence)
        self._wake()

    def release_kv(self, sequence: ModelledSequence) -> None:
        """Release the prompt of a sequence with `keeps_kv`."""
        self._release(sequence, sequence.prompt_tokens)
        self._wake()

    def _wake(self) -> None:
        """Admit waiting sequences now if idle, else at the end of the current step."""
        if self._step_run is None:
            self._loop.call_soon(self._start)  # after all other events of this moment
        elif self._step_run.steps > 1 and self.running < self._sizes.max_sequences:
            run = self._step_run
            steps = run.current_step(self._loop.time())
            if steps < run.steps:
                self._run(replace(run, steps=steps))

    def _run(self, run: StepRun) -> None:
        if self._timer:
            self._timer.cancel()
        self._step_run = run
        self._timer = self._loop.call_at(run.end_of(run.steps), self._on_run_end)

    def _start(self) -> None:
        if self._step_run:
            return
        self._admit()
        run = self._plan(self._loop.time())
        if run:
            self._run(run)

    def _plan(self, now: float) -> StepRun | None:
        """Return the steps until the next event, None without work."""
        n = len(self._decoding)
        until_finish = self._decoding[0][0] - self._steps if n else 0
        budget = self._sizes.step_tokens - n
        if not self._prefilling or budget <= 0:
            more_s = self.timing.decode_s_per_context_token * n
            return StepRun(now, until_finish, self._step_s((), 0), more_s) if n else None
        left = self._prefilling[0].prompt_tokens - self._prefilling[0].computed_tokens
        if left > budget:
            # The prompt uses the whole budget, so that no other prompt is admitted.
            steps = (left - 1) // budget
            more_s = self.timing.prefill_s_per_token_context * budget * budget
            more_s += self.timing.decode_s_per_context_token * n
            first_s = self._step_s((budget,), budget)
            return StepRun(now, min(steps, until_finish or steps), first_s, more_s, chunk=budget)
        chunks = self._chunks(budget)
        return StepRun(now, 1, self._step_s(chunks, sum(chunks)), 0.0, chunks=chunks)

    def _chunks(self, budget: int) -> tuple[int, ...]:
        sizes = list[int]()
        for sequence in self._prefilling:
            size = min(budget, sequence.prompt_tokens - sequence.computed_tokens)
            if size <= 0:
                break
            sizes.append(size)
            budget -= size
        return tuple(sizes)

    def _step_s(self, chunks: Sequence[int], tokens: int) -> float:
        pairs = zip(chunks, self._prefilling, strict=False)
        attended = sum(size * (sequence.computed_tokens + size / 2) for size, sequence in pairs)
        return self.timing.step_s(tokens, attended, len(self._decoding), self._context)

    def _on_run_end(self) -> None:
        """Count the work of the steps that have ended, and start the next ones."""
        run, self._step_run, self._timer = self._step_run, None, None
        assert run, "only a run sets the timer"
        self._steps += run.steps
        self._context += run.steps * len(self._decoding)
        sizes = (run.chunk * run.steps,) if run.chunk else run.chunks
        for size, sequence in zip(sizes, self._prefilling, strict=False):
            sequence.computed_tokens += size
            self._publish(sequence, sequence.computed_tokens)
        self._finish_decoded()
        self._start_decoding()
        self._start()

    def _finish_decoded(self) -> None:
        while self._decoding and self._decoding[0][0] == self._steps:
            sequence = heapq.heappop(self._decoding)[2]
            self._context -= sequence.prompt_tokens + sequence.response_tokens
            self._finish(sequence)

    def _start_decoding(self) -> None:
        started = [s for s in self._prefilling if s.computed_tokens == s.prompt_tokens]
        if not started:
            return
        self._prefilling = [s for s in self._prefilling if s.computed_tokens < s.prompt_tokens]
        for sequence in started:
            sequence.on_first_token()
            if sequence.response_tokens == 1:
                self._finish(sequence)
                continue
            self._count += 1  # ties in the heap are ordered by it
            end = self._steps + sequence.response_tokens - 1
            heapq.heappush(self._decoding, (end, self._count, sequence))
            self._context += sequence.prompt_tokens + 1

    def _finish(self, sequence: ModelledSequence) -> None:
        if not sequence.keeps_kv:
            # The KV of the last token is never computed.
            self._release(sequence, sequence.prompt_tokens + sequence.response_tokens - 1)
        sequence.on_done()

    def _admit(self) -> None:
        """Admit waiting prompts while the step has budget, like simulator.scheduler.Scheduler."""
        max_sequences = self._sizes.max_sequences
        while self._pulled and self.running < max_sequences:
            self._prefilling.append(self._pulled.popleft())
        budget = self._sizes.step_tokens - len(self._decoding)
        for sequence in self._prefilling:
            budget -= self._publish_next_step(sequence, budget)
        while self._waiting and budget > 0 and self.running < max_sequences:
            if not self._allocate(self._waiting[0]):
                break
            sequence = self._waiting.popleft()
            if sequence.pulls_kv:
                self._pull(sequence)
            else:
                self._prefilling.append(sequence)
                budget -= self._publish_next_step(sequence, budget)

    def _publish_next_step(self, sequence: ModelledSequence, budget: int) -> int:
        """Publish the blocks that the next step completes; return the tokens that it computes."""
        size = max(0, min(budget, sequence.prompt_tokens - sequence.computed_tokens))
        self._publish(sequence, sequence.computed_tokens + size)
        return size

    def _pull(self, sequence: ModelledSequence) -> None:
        self._pulling += 1
        tokens = sequence.prompt_tokens - sequence.cached_tokens
        seconds = self._sizes.transfer_s_per_token * tokens
        self._loop.call_later(seconds, self._on_pulled, sequence)

    def _allocate(self, sequence: ModelledSequence) -> bool:
        """Allocate KV blocks; the last prompt token is always computed. False without room."""
        block, page = self.cache.block, self._sizes.page_tokens
        useful = sequence.hashes[: (sequence.prompt_tokens - 1) // block]
        hits = self.cache.match(useful)
        length = sequence.prompt_tokens + sequence.response_tokens
        tokens = -(-length // page) * page - hits * block
        hold = self.cache.acquire(useful[:hits], tokens)
        if hold is None:
            return False
        sequence.hold, sequence.published_blocks = hold, hits
        sequence.cached_tokens = sequence.computed_tokens = hits * block
        return True

    def _on_pulled(self, sequence: ModelledSequence) -> None:
        self._pulling -= 1
        sequence.computed_tokens = sequence.prompt_tokens
        self._publish(sequence, sequence.computed_tokens)
        sequence.computed_tokens -= 1
        self._pulled.append(sequence)
        sequence.on_pulled()
        self._wake()

    def _publish(self, sequence: ModelledSequence, tokens: int) -> None:
        """Publish the blocks that `tokens` of the prompt fill, so that others find them."""
        full = min(tokens // self.cache.block, len(sequence.hashes))
        if full <= sequence.published_blocks:
            return
        first, sequence.published_blocks = sequence.published_blocks, full
        new = self.cache.publish(sequence.hold, sequence.hashes[first:full])
        if new:
            self.on_store(sequence.hashes, [first + i for i in new])

    def _release(self, sequence: ModelledSequence, tokens: int) -> None:
        """Release a sequence with `tokens` in the cache; those in whole pages stay cached."""
        page = self._sizes.page_tokens
        own = tokens // page * page - len(sequence.hashes) * self.cache.block
        self.cache.release(sequence.hold, own)
