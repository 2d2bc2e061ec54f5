"""Limits of the scheduler and the plan of one step."""

from dataclasses import dataclass, field

from hpc_dynamo.simulator.sequence import OutputSequence
from hpc_dynamo.timing_model import TimingModel


@dataclass(frozen=True)
class SchedulerLimits:
    """Sizes of the modelled engine. Names that vLLM also has mean the same as there."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    mean_output_tokens: int = 128
    tokens_per_step: int = 1  # accepted drafts of a sequence included
    time_scale: float = 1.0  # multiplies the duration of each step
    recompute: bool = False  # compute a prompt whose blocks could not be pulled; else fail it
    die_after_tokens: int | None = None  # exit when an output of this length would continue
    stall_after_tokens: int | None = None  # outputs stop growing at this length


@dataclass
class StepPlan:
    """One step: a token for each of `decodes`, and chunks of prompts with their sizes.

    `budget` is the number of prompt tokens that can still be added.
    """

    decodes: list[OutputSequence]
    budget: int
    chunks: list[tuple[OutputSequence, int]] = field(default_factory=list)

    def add_prompt(self, sequence: OutputSequence) -> int:
        """Add as much of a prompt as the budget allows. Return its number of tokens."""
        size = max(0, min(self.budget, sequence.prompt_tokens - sequence.computed_tokens))
        if size:
            self.chunks.append((sequence, size))
            self.budget -= size
        return size

    def __bool__(self) -> bool:
        return bool(self.decodes or self.chunks)

    def seconds(self, timing: TimingModel) -> float:
        """Return the modelled duration of the step."""
        tokens = sum(size for _, size in self.chunks)
        attended = sum(size * (each.computed_tokens + size / 2) for each, size in self.chunks)
        context = sum(len(each.tokens) for each in self.decodes)
        return timing.step_s(tokens, attended, len(self.decodes), context)
