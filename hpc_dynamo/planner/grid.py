"""Where a profile is measured: sizes that follow from a worker's context and its sequences."""

from collections.abc import Iterator

from hpc_dynamo.planner.profile import Spot, What

SHORTEST = 64  # tokens of a prompt
SHARES = (0.5, 0.9)  # of a prompt that are cached, beside none
CONTEXTS = (1 / 16, 1 / 2)  # of the longest sequence, where answers are made
WINDOW = 32  # tokens of each answer that are timed
SLACK = 16  # before and after them: not all begin in the same step
ROOM = 2 * SLACK + WINDOW  # of a sequence, for the answer


def grid(context_tokens: int, most_sequences: int, block: int, *, transfers: bool) -> list[Spot]:
    """All that is to be measured, cheapest first, those held out last.

    `block`: tokens that an engine caches as a whole. Prompts double from the shortest to the
    longest; those held out lie in the middle between two, where a straight line errs most.
    """
    longest = context_tokens - ROOM
    lengths = sorted(set(_halved(longest)))
    spots = [spot for n in lengths for spot in _ttft(n, block)]
    spots += _itl(longest, most_sequences, block)
    if transfers:
        spots += [Spot(what=What.transfer, prompt_tokens=n) for n in _whole(lengths[-4:], block)]
    return [*dict.fromkeys(spots), *_held_out(lengths, most_sequences, block, transfers)]


def _halved(longest: int) -> Iterator[int]:
    while longest >= SHORTEST:
        yield longest
        longest //= 2


def _whole(lengths: list[int], block: int) -> list[int]:
    """Rounded down to blocks; what is less than one is left out."""
    return sorted({n // block * block for n in lengths} - {0})


def _ttft(length: int, block: int, *, held_out: bool = False) -> Iterator[Spot]:
    yield Spot(what=What.ttft, prompt_tokens=length, held_out=held_out)
    shares = (sum(SHARES) / 2,) if held_out else SHARES
    for cached in _whole([int(share * length) for share in shares], block):
        yield Spot(what=What.ttft, prompt_tokens=length, cached_tokens=cached, held_out=held_out)


def _itl(longest: int, most: int, block: int) -> list[Spot]:
    counts = sorted({most, *(1 << i for i in range(most.bit_length()) if 1 << i <= most)})
    contexts = [max(int(share * longest), block) for share in CONTEXTS]
    return [_streams(n, context) for context in _whole(contexts, block) for n in counts]


def _streams(count: int, context: int, *, held_out: bool = False) -> Spot:
    """One token beyond whole blocks is left to compute once the rest is cached."""
    return Spot(what=What.itl, prompt_tokens=context + 1, sequences=count, held_out=held_out)


def _held_out(lengths: list[int], most: int, block: int, transfers: bool) -> Iterator[Spot]:
    between = [(a + b) // 2 for a, b in zip(lengths, lengths[1:], strict=False)][-3:]
    for length in between:
        yield from _ttft(length, block, held_out=True)
    for context in _whole([int(sum(CONTEXTS) / 2 * lengths[-1])], block):
        for count in (n for n in (3, 6, 12, 24) if n <= most):
            yield _streams(count, context, held_out=True)
    if transfers:
        for length in _whole(between[-1:], block):
            yield Spot(what=What.transfer, prompt_tokens=length, held_out=True)
