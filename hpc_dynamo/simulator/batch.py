"""What the scheduler works with: its limits, one step, and what it needs of a hand-over."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hpc_dynamo.simulator.sequence import Answer, Job, Source
from hpc_dynamo.timing_model import TimingModel


@dataclass(frozen=True)
class Limits:
    """Sizes of the modelled engine, by vLLM's names where it has them."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    mean_output_tokens: int = 128
    time_scale: float = 1.0
    recompute: bool = False  # a prompt whose blocks could not be pulled, instead of failing
    die_after_tokens: int | None = None  # the process ends when an answer has so many, and goes on
    stall_after_tokens: int | None = None  # no answer gets more than so many, nor ends


class Handover(Protocol):
    """What the scheduler needs of handover.NixlHandover."""

    async def pull(self, source: Source, local: Sequence[int], skip: int) -> None: ...
    async def settle(self, local: Sequence[int]) -> None: ...
    async def decline(self, source: Source) -> None: ...
    def give_up(self, job: Job) -> None: ...
    def lease(self, job: Job, blocks: list[int]) -> dict[str, object]: ...


@dataclass
class Batch:
    """One step: a token for each of `decodes`, and chunks of prompts with their sizes.

    `budget` is the number of tokens that more prompts may add.
    """

    decodes: list[Answer]
    budget: int
    chunks: list[tuple[Answer, int]] = field(default_factory=list)

    def add(self, answer: Answer) -> int:
        """Add as much of a prompt as the budget allows, and return its number of tokens."""
        size = max(0, min(self.budget, answer.prompt_tokens - answer.computed))
        if size:
            self.chunks.append((answer, size))
            self.budget -= size
        return size

    def __bool__(self) -> bool:
        return bool(self.decodes or self.chunks)

    def seconds(self, timing: TimingModel) -> float:
        tokens = sum(n for _, n in self.chunks)
        attended = sum(n * (answer.computed + n / 2) for answer, n in self.chunks)
        context = sum(len(answer.tokens) for answer in self.decodes)
        return timing.step_s(tokens, attended, len(self.decodes), context)
