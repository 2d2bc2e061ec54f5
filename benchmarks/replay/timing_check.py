"""Compares the timing of both modelled engines with the model, on an idle system.

The table has the TTFT of single prompts by length and the ITL of concurrent streams. It also has
the ITL of a stream during the prefill of a long prompt. Times and tokens are those of the trace.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.common import provision
from benchmarks.replay.dynamo_target import dynamo
from benchmarks.replay.hpc_dynamo_target import hpc_dynamo, policies
from benchmarks.replay.load import Seen, replay
from benchmarks.replay.targets import Running, Setting, Start
from benchmarks.replay.trace import BLOCK, Request
from hpc_dynamo.config import TopologyKind
from hpc_dynamo.http import HttpClient

LENGTHS = (1024, 4096, 16384)  # lengths of single prompts
STREAMS = (1, 8, 32)  # concurrent streams
PROMPT, ANSWER = 4096, 2048  # per stream, long enough to overlap
LONG_PROMPT = 32768  # computed during a stream
REPEATS = 3


async def run(setting: Setting, folder: Path) -> Table:
    """Measure one worker of each system, because the distribution of requests does not matter."""
    single = Setting(
        setting.engine, setting.scale, 1, setting.context, setting.model, setting.words
    )
    words = next(iter(policies(setting.scale).values()))
    peer = dynamo(single, provision.dynamo(), "kv")
    figures = [
        _model(single),
        await _measure(hpc_dynamo(single, words), single, folder / "hpc_dynamo"),
        await _measure(peer, single, folder / "dynamo"),
    ]
    table = Table("", "the model", "our simulator", "Dynamo's mocker", title="Modelled time")
    for name in figures[0]:
        table.add_row(name, *(f"{each[name]:.1f}" for each in figures))
    return table


def _model(setting: Setting) -> dict[str, float]:
    engine = setting.engine
    step_ms = 1e3 * engine.decode_s

    def context_ms(streams: int) -> float:
        return 1e3 * engine.decode_s_per_context_token * streams * (PROMPT + 5 / 8 * ANSWER)

    found = {_ttft(n): 1e3 * engine.prefill_s_per_token * n for n in LENGTHS}
    found |= {_itl(n): step_ms + context_ms(n) for n in STREAMS}
    beside_ms = 1e3 * engine.prefill_s_per_token * LONG_PROMPT
    return found | {_LONG_PROMPT: ANSWER * (step_ms + context_ms(1)) + beside_ms}


_LONG_PROMPT = f"{ANSWER} tokens of a stream during a prompt of {LONG_PROMPT:,}, ms"


def _ttft(tokens: int) -> str:
    return f"TTFT of a single prompt of {tokens:,} tokens, ms"


def _itl(streams: int) -> str:
    return f"ITL of {streams} streams, ms"


async def _measure(start: Start, setting: Setting, folder: Path) -> dict[str, float]:
    async with start(folder, TopologyKind.aggregated) as running:
        found = {_ttft(n): await _lone(running, setting, n) for n in LENGTHS}
        found |= {_itl(n): await _together(running, setting, n) for n in STREAMS}
        return found | {_LONG_PROMPT: await _disturbed(running, setting)}


async def _lone(running: Running, setting: Setting, tokens: int) -> float:
    times = [
        (await _ask(running, [_request(setting, tokens + i, tokens, BLOCK)]))[0].ttft_s
        for i in range(REPEATS)
    ]
    return 1e3 * setting.scale.trace_s(statistics.median(times))


async def _together(running: Running, setting: Setting, streams: int) -> float:
    """Return the mean gap in the third quarter of each response, when all of them run."""
    requests = [_request(setting, 100 + i, PROMPT, ANSWER) for i in range(streams)]
    seen = await _ask(running, requests)
    quarter = ANSWER // setting.scale.shrink // 4
    gaps = [gap for s in seen for gap in s.gaps_s[2 * quarter : 3 * quarter]]
    return 1e3 * setting.scale.trace_itl_s(statistics.fmean(gaps))


async def _disturbed(running: Running, setting: Setting) -> float:
    streaming = _request(setting, 300, PROMPT, ANSWER)
    other = _request(setting, 301, LONG_PROMPT, 1)
    alone_s = setting.engine.prefill_s_per_token * PROMPT / setting.scale.compress
    other = Request(other.number, 2 * alone_s, (), other.block_tokens, other.tail, 1)
    stream, _ = await _ask(running, [streaming, other])
    return 1e3 * setting.scale.trace_s(stream.end_s - stream.ttft_s)


def _request(setting: Setting, number: int, prompt: int, answer: int) -> Request:
    """Return a request with unique tokens; lengths are in tokens of the trace."""
    k = setting.scale.shrink
    return Request(number, 0.0, (), setting.scale.block_tokens, prompt // k, answer // k)


async def _ask(running: Running, requests: Sequence[Request]) -> list[Seen]:
    async with HttpClient.bearer(running.key or "none") as http:
        bodies = [request.body() for request in requests]
        return await replay(http, running.url, requests, bodies, lambda seen: None)
