"""Several tokens per step: answers stay the same, and latencies count tokens."""

from collections.abc import Callable

import msgspec

from hpc_dynamo.dispatch.merged_response import placeholder_lease
from hpc_dynamo.engines import CHAT
from hpc_dynamo.frontend.relay import ResponseRelay
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import HttpClient, ResponseWriter
from tests.support.simulator import KEY, Rank
from tests.unit.frontend.test_relay import Received

TOKENS = 50
BODY = {
    "model": "demo", "messages": [{"role": "user", "content": "count"}], "max_tokens": TOKENS,
    "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
}  # fmt: skip


async def streamed(rank: Rank) -> tuple[bytes, FrontendStats]:
    received, stats = Received(), FrontendStats()
    writer = ResponseWriter(received, keep_alive=True, http10=True, head_only=False)
    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    async with HttpClient() as client:
        sent = client.send("POST", rank.url, CHAT, msgspec.json.encode(BODY), headers)
        async with sent as response:
            await ResponseRelay(writer, stats).receive(response, placeholder_lease())
    return received.content, stats


async def test_latencies_count_tokens_and_not_pieces(start: Callable[..., Rank]) -> None:
    for tokens_per_step in (1, 4):
        # With a delay between the pieces: those that come in one read have no times between them.
        words = ("--timing", "h100-8b", "--tokens-per-step", str(tokens_per_step))
        content, stats = await streamed(start(*words))
        assert f'"completion_tokens":{TOKENS}'.encode() in content
        assert content.count(b'"content":"') <= TOKENS // tokens_per_step + 3
        assert stats.itl.count == TOKENS - 1
