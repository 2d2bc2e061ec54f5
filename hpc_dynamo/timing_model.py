"""Duration of a modelled engine step, as a pure function of its batch.

A step computes `tokens` of prefill at a mean context, and one token for each decoding sequence. Its
duration in seconds is

    max(prefill_s if any prefill, decode_s if any decode)        weights are read once
      + prefill_s_per_token * tokens
      + prefill_s_per_token_context * tokens * context           attention
      + decode_s_per_sequence * sequences
      + decode_s_per_context_token * context tokens of all       reading the KV cache
"""

from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from hpc_dynamo.errors import InputError, unknown_name
from hpc_dynamo.regular_file import MAX_RECORD_BYTES, read_regular_file


@dataclass(frozen=True)
class TimingModel:
    """Coefficients of the formula, in seconds."""

    prefill_s: float = 0.0
    prefill_s_per_token: float = 0.0
    prefill_s_per_token_context: float = 0.0
    decode_s: float = 0.0
    decode_s_per_sequence: float = 0.0
    decode_s_per_context_token: float = 0.0

    def step_s(
        self, tokens: int, tokens_context: float, sequences: int, context_tokens: int
    ) -> float:
        """Return the duration of one step in seconds.

        `tokens_context` is the sum of the context of each prefill token, `context_tokens` the sum
        of the lengths of the decoding sequences.
        """
        fixed = max(self.prefill_s if tokens else 0.0, self.decode_s if sequences else 0.0)
        prefill = self.prefill_s_per_token * tokens
        attention = self.prefill_s_per_token_context * tokens_context
        decode = self.decode_s_per_sequence * sequences
        return (
            fixed + prefill + attention + decode + self.decode_s_per_context_token * context_tokens
        )


def roofline(
    parameters: float, flops: float, bandwidth: float, kv_bytes: float, width: float
) -> TimingModel:
    """Return a first-order estimate, not a measurement, for a dense model in 16 bits.

    Prefill computes 2 FLOP per parameter and token, and 4 * width FLOP per token and token of
    context (`width`: layers times hidden size), at half of the peak `flops` per second. Decode
    reads the weights and `kv_bytes` per token of context at 80 % of `bandwidth` bytes per second.
    Launching a step takes 0.5 ms.
    """
    compute, read = 0.5 * flops, 0.8 * bandwidth
    weights_s = 2 * parameters / read + 0.0005
    return TimingModel(
        prefill_s=weights_s,
        prefill_s_per_token=2 * parameters / compute,
        prefill_s_per_token_context=4 * width / compute,
        decode_s=weights_s,
        decode_s_per_sequence=2 * parameters / compute,
        decode_s_per_context_token=kv_bytes / read,
    )


# Llama 3 8B: 32 layers of 4096; 8 KV heads of 128, which take 128 KiB per token.
_LLAMA_8B = {"parameters": 8.0e9, "kv_bytes": 131072.0, "width": 32 * 4096.0}

PROFILES = {
    "instant": TimingModel(),
    # Estimates from the peak figures of the vendor's data sheets.
    "h100-8b": roofline(flops=989e12, bandwidth=3.35e12, **_LLAMA_8B),
    "a100-8b": roofline(flops=312e12, bandwidth=2.04e12, **_LLAMA_8B),
    # Measured with SmolLM2-135M in vLLM on two AVX2 cores in float32: 365 tokens are prefilled in
    # 1.0 s, a decode step takes 0.1 s. The effects of context and batch size were too small.
    "cpu-135m": TimingModel(prefill_s_per_token=1.0 / 365, decode_s=0.1),
}


def load_timing(name: str) -> TimingModel:
    """Return a model by name, or from a JSON file with the fields of TimingModel.

    Raises ConfigError for an unknown name, InputError for an invalid file.
    """
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if path.suffix != ".json":
        raise unknown_name("simulate.timing_model", name, [*PROFILES, "FILE.json"])
    try:
        return msgspec.json.decode(read_regular_file(path, MAX_RECORD_BYTES), type=TimingModel)
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}") from e
    except (msgspec.DecodeError, RecursionError) as e:
        known = ", ".join(field.name for field in fields(TimingModel))
        raise InputError(f"{path}: {e}", hint=f"valid fields: {known}") from e
