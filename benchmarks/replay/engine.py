"""The modelled engine of both systems: one timing and one cache size in two formats.

A step takes `prefill_s_per_token` for each token that it prefills. If it decodes, it also takes
`decode_s`, and `decode_s_per_context_token` for each token of context. Dynamo's mocker supports the
same terms: its table is interpolated linearly, and its parts are added. The other terms of the
simulator (quadratic attention, cost per sequence) are zero.

A worker reads the weights in every step. A disaggregated prefill step thus takes at least
`decode_s`; in an aggregated worker, nearly every step decodes as well.
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
    """One worker in the time and tokens of the trace: about a 70B model on a few GPUs."""

    cache_tokens: int = 3 << 19  # 1.5 million
    step_tokens: int = 2048
    sequences: int = 64
    prefill_s_per_token: float = 50e-6
    decode_s: float = 0.020
    decode_s_per_context_token: float = 50e-9

    def blocks(self, scale: Scale) -> int:
        """Return the scaled number of cache blocks."""
        return self.cache_tokens // scale.shrink // ENGINE_BLOCK

    def timing(self, scale: Scale, kind: TopologyKind) -> TimingModel:
        """Return the scaled timing.

        A token stands for several tokens of the trace. A step, which generates one token per
        sequence, thus stands for as many steps; its token budget stays.
        """
        k = scale.shrink
        return TimingModel(
            prefill_s=self.decode_s * k if kind is TopologyKind.disaggregated else 0.0,
            prefill_s_per_token=self.prefill_s_per_token * k,
            decode_s=self.decode_s * k,
            decode_s_per_context_token=self.decode_s_per_context_token * k * k,
        )

    def longest(self, requests: list[Request], scale: Scale) -> int:
        """Return the context that the requests need. Raises UsageError if the cache has less."""
        need = max(r.prompt + r.answer for r in requests) + ENGINE_BLOCK
        if need > self.blocks(scale) * ENGINE_BLOCK:
            what = f"--cache-tokens {self.cache_tokens}: the longest request needs more"
            raise UsageError(what, hint=f"at least {need * scale.shrink}")
        return need


def write_simulator(timing: TimingModel, file: Path) -> None:
    """Write the timing for the simulator's --timing."""
    file.write_bytes(msgspec.json.encode(timing))


def write_mocker(timing: TimingModel, file: Path) -> None:
    """Write the table for the mocker's --planner-profile-data.

    It has milliseconds by new prompt tokens, and by (context tokens of all sequences, of one). The
    times are linear, so that two points of each are enough. Raises MissingDependency without numpy.
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
