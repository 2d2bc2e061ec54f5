"""Where a profile is measured: sizes that follow from a worker's context and its sequences."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner.profile import Metric, OperatingPoint

MIN_PROMPT_TOKENS = 32  # tokens of a prompt that are computed
CACHED = (0.0, 0.5, 1.0)  # before them, as shares of what the context has room for
CACHED_HELD_OUT = (0.0, 0.75)
CONTEXTS = (1 / 16, 1 / 2)  # of the longest that so many sequences may have, where answers are made
CONTEXT_HELD_OUT = sum(CONTEXTS) / 2
TRANSFERS = 4  # prompts, the longest ones
TRANSFERS_HELD_OUT = 2
TIMED_TOKENS = 32  # tokens of each answer that are timed
MARGIN_TOKENS = 16  # before and after them: not all begin in the same step
RESPONSE_TOKENS = 2 * MARGIN_TOKENS + TIMED_TOKENS  # of a sequence, for the answer


@dataclass(frozen=True)
class ProfileLimits:
    """Of the workers that are measured."""

    context_tokens: int  # of a sequence
    max_sequences: int  # decoded at a time
    block_tokens: int  # that an engine caches as a whole
    kv_tokens: int  # that its KV cache holds; 0: not known
    transfers: bool  # one worker prefills for another


def operating_points(limits: ProfileLimits) -> list[OperatingPoint]:
    """All that is to be measured, short prompts first, those held out last.

    What is computed of a prompt doubles from the shortest to the longest, sequences from one to
    the most; what is held out lies in the middle between two, where a straight line errs most.
    Sequences are as long as the KV cache has room for so many. Raises ConfigError where no prompt
    fits.
    """
    lengths = sorted(_halved(limits.context_tokens - RESPONSE_TOKENS))
    if not lengths:
        what = f"sequences of {limits.context_tokens} tokens are too short to be profiled"
        raise ConfigError(
            what, hint=f"engine.args.max-model-len={MIN_PROMPT_TOKENS + RESPONSE_TOKENS}, or more"
        )
    doubled = sorted({limits.max_sequences, *_doubled(limits.max_sequences)})
    counts = [n for n in doubled if any(_itl(n, CONTEXTS[-1], limits))]
    spots = dict.fromkeys(_measured(lengths, counts, limits))
    others = dict.fromkeys(s for s in _between(lengths, counts, limits) if s not in spots)
    return [*spots, *(msgspec.structs.replace(spot, held_out=True) for spot in others)]


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
    """Only whole blocks are ever cached."""
    for share in shares:
        room = limits.context_tokens - RESPONSE_TOKENS - length
        cached = int(share * room) // limits.block_tokens * limits.block_tokens
        yield OperatingPoint(
            metric=Metric.ttft, prompt_tokens=length + cached, cached_tokens=cached
        )


def _itl(count: int, share: float, limits: ProfileLimits) -> Iterator[OperatingPoint]:
    """One token beyond whole blocks is left to compute once the rest is cached."""
    room = limits.kv_tokens // count if limits.kv_tokens else limits.context_tokens
    context = int(share * (min(room, limits.context_tokens) - RESPONSE_TOKENS))
    whole = context // limits.block_tokens * limits.block_tokens
    if context > 0:
        yield OperatingPoint(
            metric=Metric.itl, prompt_tokens=(whole or context) + 1, sequences=count
        )


def _transfer(length: int) -> OperatingPoint:
    return OperatingPoint(metric=Metric.transfer, prompt_tokens=length)
