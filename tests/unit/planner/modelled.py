"""Profiles computed by formulas, so that they do not depend on the machine."""

from collections.abc import Callable

from hpc_dynamo.planner.profile import EngineProfile, Measurement, Metric, OperatingPoint
from hpc_dynamo.profiler.grid import RESPONSE_TOKENS, ProfileLimits, operating_points
from hpc_dynamo.timing_model import TimingModel

LIMITS = ProfileLimits(
    context_tokens=8192, max_sequences=64, block_tokens=16, kv_tokens=65536, transfers=True
)
KV_BYTES = 1024  # per token
STEP_TOKENS = 2048  # prompt tokens per step


def profile(points: tuple[Measurement, ...] = (), limits: ProfileLimits = LIMITS) -> EngineProfile:
    return EngineProfile(
        model="m",
        engine="formula",
        version="1",
        hardware="none",
        kind="disaggregated",
        tensor_parallel=4,
        pipeline_parallel=1,
        data_parallel=1,
        date="2026-01-01T00:00:00+00:00",
        context_tokens=limits.context_tokens,
        kv_tokens=limits.kv_tokens,
        max_sequences=limits.max_sequences,
        startup_s=30.0,
        prompt_tokens_per_s=1.0,
        answer_tokens_per_s=1.0,
        points=points,
    )


def measured(timing: TimingModel, byte_s: float, limits: ProfileLimits = LIMITS) -> EngineProfile:
    """Return the profile of an engine with this timing, measured without noise."""
    return profile(tuple(_point(spot, timing, byte_s) for spot in operating_points(limits)), limits)


def _point(spot: OperatingPoint, timing: TimingModel, byte_s: float) -> Measurement:
    context, measure = spot.prompt_tokens + RESPONSE_TOKENS / 2, _MEASURES[spot.metric]
    return Measurement(
        point=spot,
        seconds=measure(spot, timing, byte_s),
        cached_tokens=spot.cached_tokens,
        context_tokens=context if spot.metric is Metric.itl else 0.0,
        size_bytes=spot.prompt_tokens * KV_BYTES if spot.metric is Metric.transfer else 0,
    )


def prefill_s(timing: TimingModel, prompt: int, cached: int = 0) -> float:
    """Compute the prefill step by step, like the simulator's scheduler."""
    seconds, done = 0.0, cached
    while done < prompt:
        size = min(STEP_TOKENS, prompt - done)
        seconds += timing.step_s(size, size * (done + (size + 1) / 2), 0, 0)
        done += size
    return seconds


def _itl(spot: OperatingPoint, timing: TimingModel, byte_s: float) -> float:
    context = spot.sequences * (spot.prompt_tokens + RESPONSE_TOKENS // 2)
    return timing.step_s(0, 0, spot.sequences, context)


def _transfer(spot: OperatingPoint, timing: TimingModel, byte_s: float) -> float:
    tokens = spot.prompt_tokens
    return KV_BYTES * tokens * byte_s + timing.step_s(0, 0, 1, tokens)


_MEASURES: dict[Metric, Callable[[OperatingPoint, TimingModel, float], float]] = {
    Metric.ttft: lambda spot, timing, _: prefill_s(timing, spot.prompt_tokens, spot.cached_tokens),
    Metric.itl: _itl,
    Metric.transfer: _transfer,
}
