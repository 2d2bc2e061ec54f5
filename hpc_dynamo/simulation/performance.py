"""WorkerPerformance of a timing model."""

from dataclasses import dataclass

from hpc_dynamo.simulation.worker import EngineSizes
from hpc_dynamo.timing_model import TimingModel


@dataclass(frozen=True)
class TimingPerformance:
    """A worker that either prefills or decodes."""

    prefill: TimingModel
    decode: TimingModel
    sizes: EngineSizes
    startup_s: float = 0.0

    @property
    def max_sequences(self) -> int:
        return self.sizes.max_sequences

    def prefill_s(self, prompt_tokens: float, cached_tokens: float = 0.0) -> float:
        left, size = max(1.0, prompt_tokens - cached_tokens), self.sizes.step_tokens
        steps = -(-left // size)
        attended = left * (prompt_tokens - left / 2)
        timing = self.prefill
        each_s = timing.prefill_s_per_token * left + timing.prefill_s_per_token_context * attended
        return steps * timing.prefill_s + each_s

    def itl_s(self, sequences: float, context_tokens: float) -> float:
        timing, n = self.decode, max(1.0, sequences)
        each_s = timing.decode_s_per_sequence + timing.decode_s_per_context_token * context_tokens
        return timing.decode_s + n * each_s

    def transfer_s(self, tokens: float) -> float:
        return self.sizes.transfer_s_per_token * tokens
