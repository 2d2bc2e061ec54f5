"""The points at which a profile is measured."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner.profile import Metric
from hpc_dynamo.profiler.grid import (
    MIN_PROMPT_TOKENS,
    RESPONSE_TOKENS,
    ProfileLimits,
    operating_points,
)
from tests.unit.planner.modelled import LIMITS


@st.composite
def limits_of_some_worker(draw: st.DrawFn) -> ProfileLimits:
    context = draw(st.integers(MIN_PROMPT_TOKENS + RESPONSE_TOKENS, 200_000))
    return ProfileLimits(
        context_tokens=context,
        max_sequences=draw(st.integers(1, 1024)),
        block_tokens=draw(st.sampled_from([1, 16, 128])),
        kv_tokens=draw(st.just(0) | st.integers(context, 10 * context)),
        transfers=draw(st.booleans()),
    )


SOME = limits_of_some_worker()


@given(SOME)
def test_points_are_unique_and_fit_the_limits(limits: ProfileLimits) -> None:
    points = operating_points(limits)
    places = [(s.metric, s.prompt_tokens, s.cached_tokens, s.sequences) for s in points]
    assert max(Counter(places).values()) == 1, "a point held out is also interpolated from"
    for point in points:
        assert point.prompt_tokens + RESPONSE_TOKENS <= limits.context_tokens
        assert point.cached_tokens < point.prompt_tokens
        assert point.cached_tokens % limits.block_tokens == 0
        if point.metric is Metric.itl and limits.kv_tokens:
            assert point.sequences * (point.prompt_tokens + RESPONSE_TOKENS) <= limits.kv_tokens


@given(SOME)
def test_held_out_points_lie_inside_the_grid(limits: ProfileLimits) -> None:
    points = operating_points(limits)
    for what in (Metric.ttft, Metric.transfer):
        here = [s for s in points if s.metric is what]
        inside = [s.prompt_tokens - s.cached_tokens for s in here if not s.held_out]
        outside = [s.prompt_tokens - s.cached_tokens for s in here if s.held_out]
        assert all(min(inside) < n < max(inside) for n in outside)
    counts = [s.sequences for s in points if s.metric is Metric.itl and not s.held_out]
    held_out = [s.sequences for s in points if s.metric is Metric.itl and s.held_out]
    assert all(min(counts) <= n <= max(counts) for n in held_out)


def test_prompts_and_sequences_double() -> None:
    points = [s for s in operating_points(LIMITS) if not s.held_out]
    computed = (s.prompt_tokens - s.cached_tokens for s in points if s.metric is Metric.ttft)
    assert list(dict.fromkeys(computed)) == [63, 127, 254, 508, 1016, 2032, 4064, 8128]
    counts = dict.fromkeys(s.sequences for s in points if s.metric is Metric.itl)
    assert list(counts) == [1, 2, 4, 8, 16, 32, 64]
    assert [s.prompt_tokens for s in points if s.metric is Metric.transfer] == [
        1016,
        2032,
        4064,
        8128,
    ]


def test_maximum_sequences_are_measured() -> None:
    limits = ProfileLimits(
        context_tokens=2048, max_sequences=6, block_tokens=16, kv_tokens=0, transfers=False
    )
    counts = {
        s.sequences for s in operating_points(limits) if s.metric is Metric.itl and not s.held_out
    }
    assert counts == {1, 2, 4, 6}


def test_cached_tokens_fill_the_remaining_context() -> None:
    points = [s for s in operating_points(LIMITS) if s.metric is Metric.ttft and not s.held_out]
    of_1016 = [s.cached_tokens for s in points if s.prompt_tokens - s.cached_tokens == 1016]
    assert of_1016 == [0, 3552, 7104]


def test_aggregated_worker_has_no_transfer_points() -> None:
    limits = ProfileLimits(
        context_tokens=2048, max_sequences=4, block_tokens=16, kv_tokens=0, transfers=False
    )
    assert {s.metric for s in operating_points(limits)} == {Metric.ttft, Metric.itl}


def test_too_short_context_is_rejected() -> None:
    limits = ProfileLimits(
        context_tokens=95, max_sequences=4, block_tokens=16, kv_tokens=0, transfers=True
    )
    with pytest.raises(ConfigError, match="95 tokens are too short") as e:
        operating_points(limits)
    assert "max-model-len=96" in e.value.hint
