"""A modelled engine that computes when things end instead of stepping through tokens.

It keeps the rules of simulator.scheduler: one token a step for each answer, the rest of a step's
budget for prompts in their order, admission between steps, blocks for the whole answer taken at
its beginning. Between events (a new request, a prompt's end, an answer's end) steps are an
arithmetic progression, so one timer stands for all of them.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hpc_dynamo.simulation.cache import Cache, Hold
from hpc_dynamo.simulation.step_run import Jump
from hpc_dynamo.timing_model import Timing


@dataclass(frozen=True)
class Limits:
    """Sizes of a modelled engine; see simulator.batch.Limits."""

    sequences: int = 64
    step_tokens: int = 2048
    cache_tokens: int = 65_536
    page: int = 16  # tokens, that memory is counted in
    transfer_s_per_token: float = 0.0  # of KV cache, between two workers


def _nothing() -> None:
    pass


@dataclass(eq=False)
class Answer:
    """One answer being made. `begun` and `done` are called at its first and its last token;
    `pulled`, for one whose prompt another worker computed, when that one may forget it."""

    prompt: int
    answer: int
    hashes: Sequence[int] = ()
    pulls: bool = False
    keeps: bool = False  # the prompt stays, for another worker to pull, until `let_go`
    begun: Callable[[], None] = _nothing
    done: Callable[[], None] = _nothing
    pulled: Callable[[], None] = _nothing
    cached: int = 0
    computed: int = 0
    shown: int = 0  # blocks that others can find
    hold: Hold = field(default_factory=Hold)


class Worker:
    """One engine, in the time of the running event loop."""

    def __init__(self, limits: Limits, timing: Timing, block: int) -> None:
        self._limits, self.timing = limits, timing
        self.cache = Cache(limits.cache_tokens, block)
        self.on_store: Callable[[Sequence[int], Sequence[int]], None] = lambda hashes, new: None
        self._waiting, self._pulled = deque[Answer](), deque[Answer]()
        self._prefilling = list[Answer]()
        self._decoding = list[tuple[int, int, Answer]]()  # by the step that ends them
        self._pulling = 0
        self._steps = self._context = self._count = 0
        self._jump: Jump | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._pulled) + self._pulling

    def submit(self, sequence: Answer) -> None:
        self._waiting.append(sequence)
        self._wake()

    def let_go(self, sequence: Answer) -> None:
        """Of a prompt that was kept."""
        self._release(sequence, sequence.prompt)
        self._wake()

    # Steps.

    def _wake(self) -> None:
        """Something may be admitted: now if idle, else when the step under way is over."""
        if self._jump is None:
            self._loop.call_soon(self._start)  # together with what else comes at this moment
        elif self._jump.steps > 1 and self.running < self._limits.sequences:
            jump = self._jump
            steps = jump.under_way(self._loop.time())
            if steps < jump.steps:
                cut = Jump(jump.begin, steps, jump.first_s, jump.more_s, jump.chunk, jump.chunks)
                self._run(cut)

    def _run(self, jump: Jump) -> None:
        if self._timer:
            self._timer.cancel()
        self._jump = jump
        self._timer = self._loop.call_at(jump.after(jump.steps), self._over)

    def _start(self) -> None:
        if self._jump:
            return
        self._admit()
        jump = self._plan(self._loop.time())
        if jump:
            self._run(jump)

    def _plan(self, now: float) -> Jump | None:
        """The steps until something changes; None where there is nothing to do."""
        n = len(self._decoding)
        most = self._decoding[0][0] - self._steps if n else 0
        budget = self._limits.step_tokens - n
        if not self._prefilling or budget <= 0:
            more_s = self.timing.decode_s_per_context_token * n
            return Jump(now, most, self._step_s((), 0), more_s) if n else None
        left = self._prefilling[0].prompt - self._prefilling[0].computed
        if left > budget:
            steps = (left - 1) // budget  # no other prompt is admitted: the budget is used up
            more_s = self.timing.prefill_s_per_token_context * budget * budget
            more_s += self.timing.decode_s_per_context_token * n
            first_s = self._step_s((budget,), budget)
            return Jump(now, min(steps, most or steps), first_s, more_s, chunk=budget)
        chunks = self._chunks(budget)
        return Jump(now, 1, self._step_s(chunks, sum(chunks)), 0.0, chunks=chunks)

    def _chunks(self, budget: int) -> tuple[int, ...]:
        sizes = list[int]()
        for sequence in self._prefilling:
            size = min(budget, sequence.prompt - sequence.computed)
            if size <= 0:
                break
            sizes.append(size)
            budget -= size
        return tuple(sizes)

    def _step_s(self, chunks: Sequence[int], tokens: int) -> float:
        pairs = zip(chunks, self._prefilling, strict=False)
        attended = sum(size * (sequence.computed + size / 2) for size, sequence in pairs)
        return self.timing.step_s(tokens, attended, len(self._decoding), self._context)

    def _over(self) -> None:
        """The jump has ended: what it computed counts now."""
        jump, self._jump, self._timer = self._jump, None, None
        assert jump, "only a jump sets the timer"
        self._steps += jump.steps
        self._context += jump.steps * len(self._decoding)
        sizes = (jump.chunk * jump.steps,) if jump.chunk else jump.chunks
        for size, sequence in zip(sizes, self._prefilling, strict=False):
            sequence.computed += size
            self._show(sequence, sequence.computed)
        self._end_due()
        self._begin_due()
        self._start()

    def _end_due(self) -> None:
        while self._decoding and self._decoding[0][0] == self._steps:
            sequence = heapq.heappop(self._decoding)[2]
            self._context -= sequence.prompt + sequence.answer
            self._end(sequence)

    def _begin_due(self) -> None:
        begun = [s for s in self._prefilling if s.computed == s.prompt]
        if not begun:
            return
        self._prefilling = [s for s in self._prefilling if s.computed < s.prompt]
        for sequence in begun:
            sequence.begun()
            if sequence.answer == 1:
                self._end(sequence)
                continue
            self._count += 1  # equals in the heap go by their order
            end = self._steps + sequence.answer - 1
            heapq.heappush(self._decoding, (end, self._count, sequence))
            self._context += sequence.prompt + 1

    def _end(self, sequence: Answer) -> None:
        if not sequence.keeps:
            # The KV of the last token is never computed.
            self._release(sequence, sequence.prompt + sequence.answer - 1)
        sequence.done()

    # The cache.

    def _admit(self) -> None:
        """Admit waiting prompts while the step has budget, like simulator.scheduler.Scheduler."""
        most = self._limits.sequences
        while self._pulled and self.running < most:
            self._prefilling.append(self._pulled.popleft())
        budget = self._limits.step_tokens - len(self._decoding)
        for sequence in self._prefilling:
            budget -= self._fill(sequence, budget)
        while self._waiting and budget > 0 and self.running < most:
            if not self._place(self._waiting[0]):
                break
            sequence = self._waiting.popleft()
            if sequence.pulls:
                self._pull(sequence)
            else:
                self._prefilling.append(sequence)
                budget -= self._fill(sequence, budget)

    def _fill(self, sequence: Answer, budget: int) -> int:
        """Publish the blocks that the next step completes; return the tokens that it computes."""
        size = max(0, min(budget, sequence.prompt - sequence.computed))
        self._show(sequence, sequence.computed + size)
        return size

    def _pull(self, sequence: Answer) -> None:
        self._pulling += 1
        seconds = self._limits.transfer_s_per_token * (sequence.prompt - sequence.cached)
        self._loop.call_later(seconds, self._received, sequence)

    def _place(self, sequence: Answer) -> bool:
        """As simulator.model.Model.place: the prompt's last token is left to compute."""
        block, page = self.cache.block, self._limits.page
        useful = sequence.hashes[: (sequence.prompt - 1) // block]
        hits = self.cache.match(useful)
        tokens = -(-(sequence.prompt + sequence.answer) // page) * page - hits * block
        hold = self.cache.take(useful[:hits], tokens)
        if hold is None:
            return False
        sequence.hold, sequence.shown = hold, hits
        sequence.cached = sequence.computed = hits * block
        return True

    def _received(self, sequence: Answer) -> None:
        self._pulling -= 1
        sequence.computed = sequence.prompt
        self._show(sequence, sequence.computed)
        sequence.computed -= 1
        self._pulled.append(sequence)
        sequence.pulled()
        self._wake()

    def _show(self, sequence: Answer, tokens: int) -> None:
        """Publish the blocks that `tokens` of the prompt fill, so that others find them."""
        full = min(tokens // self.cache.block, len(sequence.hashes))
        if full <= sequence.shown:
            return
        first, sequence.shown = sequence.shown, full
        new = self.cache.publish(sequence.hold, sequence.hashes[first:full])
        if new:
            self.on_store(sequence.hashes, [first + i for i in new])

    def _release(self, sequence: Answer, tokens: int) -> None:
        """`tokens` of it are in the cache; those in whole pages stay, behind its blocks."""
        page = self._limits.page
        own = tokens // page * page - len(sequence.hashes) * self.cache.block
        self.cache.release(sequence.hold, own)
