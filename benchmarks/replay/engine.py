"""The modelled engine behind both systems: one timing and one cache size, said in two languages.

A step takes `prefill_s_per_token` for each token that it prefills, plus `decode_s` and
`decode_s_per_context_token` for each token of context where it decodes. These are the terms that
Dynamo's mocker can express too (its table is interpolated linearly, its parts are added), so that
a step takes the same time in both. What our simulator knows beyond them (attention's square, a
sequence's own cost) stays at zero here.

A prefill or decode worker reads the weights in every step, so where roles are apart a step of
prefill takes at least `decode_s`; where they are together, decodes nearly always ride along.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.replay.trace import ENGINE_BLOCK, Request, Scale
from hpc_dynamo.config import TopologyKind
from hpc_dynamo.errors import MissingDependency, UsageError
from hpc_dynamo.timing_model import TimingModel


@dataclass(frozen=True)
class Engine:
    """One worker, in the trace's own seconds and tokens: about a 70B model on a few GPUs, with
    a cache that keeps its prompts for minutes."""

    cache_tokens: int = 3 << 19  # 1.5 million
    step_tokens: int = 2048
    sequences: int = 64
    prefill_s_per_token: float = 50e-6
    decode_s: float = 0.020
    decode_s_per_context_token: float = 50e-9

    def blocks(self, scale: Scale) -> int:
        """Of the cache as it is run."""
        return self.cache_tokens // scale.shrink // ENGINE_BLOCK

    def timing(self, scale: Scale, kind: TopologyKind) -> TimingModel:
        """In the trace's seconds. A token of ours stands for several, and so a step, which gives
        one to each sequence, for as many steps: its budget of tokens stays as it is.
        """
        k = scale.shrink
        return TimingModel(
            prefill_s=self.decode_s * k if kind is TopologyKind.disaggregated else 0.0,
            prefill_s_per_token=self.prefill_s_per_token * k,
            decode_s=self.decode_s * k,
            decode_s_per_context_token=self.decode_s_per_context_token * k * k,
        )

    def longest(self, requests: list[Request], scale: Scale) -> int:
        """The context that the requests need. Raises UsageError where the cache has less."""
        need = max(r.prompt + r.answer for r in requests) + ENGINE_BLOCK
        if need > self.blocks(scale) * ENGINE_BLOCK:
            what = f"--cache-tokens {self.cache_tokens}: the longest request alone needs more"
            raise UsageError(what, hint=f"at least {need * scale.shrink}")
        return need


def write_simulator(timing: TimingModel, file: Path) -> None:
    """For our simulator's --timing."""
    file.write_bytes(msgspec.json.encode(timing))


def write_mocker(timing: TimingModel, file: Path) -> None:
    """For the mocker's --planner-profile-data: milliseconds by new tokens of prompts, and by
    (tokens of context of all sequences, of one). Linear, so that two points of each are all.

    Raises MissingDependency without numpy.
    """
    try:
        import numpy as np
    except ImportError as e:
        hint = "pip install -e '.[bench]'"
        raise MissingDependency("Dynamo's timing table needs numpy", hint=hint) from e
    most = 1e6
    prefill_s = np.array([timing.prefill_s, timing.prefill_s + timing.prefill_s_per_token * most])
    decode_s = np.array(
        [timing.decode_s, timing.decode_s + timing.decode_s_per_context_token * most]
    )
    np.savez(
        file,
        prefill_isl=np.array([0.0, most]),
        prefill_ttft_ms=prefill_s * 1e3,
        decode_active_kv_tokens=np.array([0.0, most]),
        decode_context_length=np.array([0.0, most]),
        decode_itl=np.stack([decode_s, decode_s], axis=1) * 1e3,
    )
