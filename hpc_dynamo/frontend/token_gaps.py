"""Times between the tokens of a stream.

A piece of a stream has one token, several (speculative decoding, or a busy machine), or none (the
role of a chat's message). Only the usage at the end of a stream gives the number of tokens. Streams
without usage, or with several choices, are counted by their pieces.
"""

import re
from array import array

from hpc_dynamo.histogram import Histogram

# Quotes inside texts are escaped, so only the usage matches.
HINT = b'_tokens":'
GENERATED = re.compile(rb'"(?:completion|output)_tokens":\s*([0-9]{1,9})\b')


class TokenGaps:
    """The pieces that one worker has sent of a stream."""

    def __init__(self, choices: int = 1) -> None:
        self._choices = choices
        self._gaps = array("d")  # seconds
        self._with_usage = b""  # the last piece with a usage
        self._counted = 0  # tokens of earlier workers of this stream

    def add(self, gap_s: float | None, data: bytes) -> None:
        """Add a piece, and the time since the one before; None for the first of the stream."""
        if gap_s is not None:
            self._gaps.append(gap_s)
        if HINT in data:
            self._with_usage = data

    def take(self, histogram: Histogram) -> int:
        """Observe the times between tokens, and return their number. The pieces are forgotten.

        The usage of a stream that another worker continued is that of the whole stream.
        """
        gaps, found = self._gaps, GENERATED.findall(self._with_usage)
        self._gaps, self._with_usage = array("d"), b""
        tokens = max(0, int(found[-1]) - 1 - self._counted) if found else len(gaps)
        self._counted += tokens
        _observe(gaps, tokens if self._choices == 1 else len(gaps), histogram)
        return tokens


def _observe(gaps: "array[float]", tokens: int, histogram: Histogram) -> None:
    """Observe this many gaps. Their sum is that of `gaps`, apart from the shortest ones, which
    belong to pieces without a token."""
    if tokens <= len(gaps):
        for gap in sorted(gaps)[len(gaps) - tokens :]:
            histogram.observe(gap)
        return
    for i, gap in enumerate(gaps):
        times = (i + 1) * tokens // len(gaps) - i * tokens // len(gaps)
        histogram.observe(gap / times, times)
