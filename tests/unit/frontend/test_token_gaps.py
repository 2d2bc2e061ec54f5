"""Inter-token latencies count tokens: of speculative decoding, of reasoning, of chats."""

import json
from typing import Any

import pytest

from hpc_dynamo.frontend.relay import ResponseRelay
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.frontend.token_gaps import TokenGaps
from hpc_dynamo.histogram import Histogram
from hpc_dynamo.http import ResponseWriter
from hpc_dynamo.router import Lease, LeaseEvent, Target
from tests.unit.frontend.test_relay import Pieces, Received

DONE = b"data: [DONE]\n\n"


def event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n".encode()


def delta(**fields: str) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


def usage(tokens: int, **more: Any) -> bytes:
    return event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": tokens, **more})


class Progress:
    """LeaseListener that adds the tokens of a response."""

    tokens = 0

    def on_lease_event(self, lease: int, event: LeaseEvent, value: int) -> None:
        if event in (LeaseEvent.first_token, LeaseEvent.progress):
            self.tokens += 1 if event is LeaseEvent.first_token else value


async def counted(pieces: list[bytes], choices: int = 1) -> tuple[int, int]:
    """Return the number of gaps between tokens, and the tokens reported to the router."""
    writer = ResponseWriter(Received(), keep_alive=True, http10=True, head_only=False)
    stats, progress = FrontendStats(), Progress()
    relay = ResponseRelay(writer, stats, choices=choices)
    await relay.receive(Pieces(pieces), Lease(1, None, Target(0, ""), progress))
    return stats.itl.count, progress.tokens


ROLE, WORD = delta(role="assistant", content=""), delta(content="a b c ")
THOUGHT = delta(reasoning_content="so ")
THOUGHTFUL = usage(50, completion_tokens_details={"reasoning_tokens": 45})


@pytest.mark.parametrize(
    ("pieces", "gaps"),
    [
        ([ROLE, *[WORD] * 20, usage(20), DONE], 19),
        ([ROLE, *[WORD] * 20, usage(60), DONE], 59),  # three tokens per step
        ([ROLE, *[WORD] * 20, usage(60) + DONE], 59),
        ([ROLE, *[WORD * 4] * 5, usage(20) + DONE], 19),  # a busy machine
        ([ROLE, *[WORD] * 200, usage(500), DONE], 499),
        ([ROLE, *[THOUGHT] * 15, *[WORD] * 5, usage(20), DONE], 19),
        (
            [ROLE, *[THOUGHT] * 9, WORD, THOUGHTFUL, DONE],
            49,
        ),
        ([delta(content="a") + usage(1) + DONE], 0),
        ([ROLE, delta(content='"completion_tokens":7'), usage(2), DONE], 1),
        ([event(type="delta")] * 4 + [event(usage={"input_tokens": 9, "output_tokens": 9})], 8),
        ([event(type="delta")] * 4 + [event(response={"usage": {"output_tokens": 9}})], 8),
    ],
)
async def test_gaps_are_counted_by_tokens(pieces: list[bytes], gaps: int) -> None:
    assert await counted(pieces) == (gaps, gaps + 1)


async def test_stream_without_usage_is_counted_by_pieces() -> None:
    assert await counted([ROLE, *[WORD] * 100, DONE]) == (101, 102)


async def test_gaps_of_several_choices_are_those_of_pieces() -> None:
    """Three choices of ten tokens generate at the same time."""
    assert await counted([WORD] * 30 + [usage(30)], choices=3) == (30, 30)


def test_sum_of_gaps_is_the_time_of_the_stream() -> None:
    for tokens in (7, 12, 40):
        gaps, found = TokenGaps(), Histogram((0.01, 0.1, 1.0))
        for gap in (None, 0.0, 0.2, 0.4, 0.2, 0.4, 0.2, 0.4, 0.0):
            gaps.add(gap, WORD)
        gaps.add(0.0, usage(tokens))
        assert gaps.take(found) == tokens - 1 == found.count
        assert found.sum == pytest.approx(1.8)


def test_worker_that_continues_a_stream_counts_only_its_own_tokens() -> None:
    gaps, found = TokenGaps(), Histogram((1.0,))
    for gap in (None, 0.1, 0.1):
        gaps.add(gap, WORD)
    assert gaps.take(found) == 2
    for gap in (0.5, 0.1):
        gaps.add(gap, WORD)
    gaps.add(0.1, usage(9))
    assert gaps.take(found) == 6
    assert found.count == 8
