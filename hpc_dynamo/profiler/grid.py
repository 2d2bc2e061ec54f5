"""Points at which a profile is measured, derived from the limits of a worker."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner.profile import Metric, OperatingPoint

MIN_PROMPT_TOKENS = 32  # minimum tokens to compute
# Tokens cached before these, as shares of the remaining context.
CACHED = (0.0, 0.5, 1.0)
CACHED_HELD_OUT = (0.0, 0.75)
# Context lengths of the ITL, as shares of the longest that fit into the KV cache.
CONTEXTS = (1 / 16, 1 / 2)
CONTEXT_HELD_OUT = sum(CONTEXTS) / 2
TRANSFERS = 4  # number of prompts, the longest ones
TRANSFERS_HELD_OUT = 2
TIMED_TOKENS = 32  # tokens of each response that are timed
MARGIN_TOKENS = 16  # untimed before and after: responses do not start in the same step
RESPONSE_TOKENS = 2 * MARGIN_TOKENS + TIMED_TOKENS


@dataclass(frozen=True)
class ProfileLimits:
    """Limits of the measured workers."""

    context_tokens: int  # maximum length of a sequence
    max_sequences: int
    block_tokens: int  # size of a cached KV block
    kv_tokens: int  # capacity of the KV cache; 0: unknown
    transfers: bool  # the topology is disaggregated


def operating_points(limits: ProfileLimits) -> list[OperatingPoint]:
    """Return the points, short prompts first and held-out points last.

    Computed tokens and sequences double from point to point. Held-out points lie in the middle
    between two, where a linear interpolation errs most. Raises ConfigError if no prompt fits.
    """
    lengths = sorted(_halved(limits.context_tokens - RESPONSE_TOKENS))
    if not lengths:
        what = f"sequences of {limits.context_tokens} tokens are too short to be profiled"
        raise ConfigError(
            what, hint=f"engine.args.max-model-len={MIN_PROMPT_TOKENS + RESPONSE_TOKENS}, or more"
        )
    doubled = sorted({limits.max_sequences, *_doubled(limits.max_sequences)})
    counts = [n for n in doubled if any(_itl(n, CONTEXTS[-1], limits))]
    points = dict.fromkeys(_measured(lengths, counts, limits))
    others = dict.fromkeys(s for s in _between(lengths, counts, limits) if s not in points)
    return [*points, *(msgspec.structs.replace(point, held_out=True) for point in others)]


def _measured(
    lengths: list[int], counts: list[int], limits: ProfileLimits
) -> Iterator[OperatingPoint]:
    for length in lengths:
        yield from _ttft(length, CACHED, limits)
    for count in counts:
        for share in CONTEXTS:
            yield from _itl(count, share, limits)
    if limits.transfers:
        yield from map(_transfer, lengths[-TRANSFERS:])


def _between(
    lengths: list[int], counts: list[int], limits: ProfileLimits
) -> Iterator[OperatingPoint]:
    middles = [(a + b) // 2 for a, b in pairwise(lengths)]
    for length in middles:
        yield from _ttft(length, CACHED_HELD_OUT, limits)
    for count in [(a + b) // 2 for a, b in pairwise(counts)] or counts:
        yield from _itl(count, CONTEXT_HELD_OUT, limits)
    if limits.transfers:
        yield from map(_transfer, middles[-TRANSFERS_HELD_OUT:])


def _halved(longest: int) -> Iterator[int]:
    while longest >= MIN_PROMPT_TOKENS:
        yield longest
        longest //= 2


def _doubled(most: int) -> Iterator[int]:
    return (1 << i for i in range(most.bit_length()))


def _ttft(length: int, shares: Iterable[float], limits: ProfileLimits) -> Iterator[OperatingPoint]:
    """Yield prompts with full blocks cached."""
    for share in shares:
        room = limits.context_tokens - RESPONSE_TOKENS - length
        cached = int(share * room) // limits.block_tokens * limits.block_tokens
        yield OperatingPoint(
            metric=Metric.ttft, prompt_tokens=length + cached, cached_tokens=cached
        )


def _itl(count: int, share: float, limits: ProfileLimits) -> Iterator[OperatingPoint]:
    """Yield a prompt of full blocks and one token, which is all that is computed."""
    room = limits.kv_tokens // count if limits.kv_tokens else limits.context_tokens
    context = int(share * (min(room, limits.context_tokens) - RESPONSE_TOKENS))
    full_blocks = context // limits.block_tokens * limits.block_tokens
    if context > 0:
        yield OperatingPoint(
            metric=Metric.itl, prompt_tokens=(full_blocks or context) + 1, sequences=count
        )


def _transfer(length: int) -> OperatingPoint:
    return OperatingPoint(metric=Metric.transfer, prompt_tokens=length)
