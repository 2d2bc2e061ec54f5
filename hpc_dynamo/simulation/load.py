"""Requests to simulate: of a trace, or of synthetic phases."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import msgspec

from hpc_dynamo.errors import InputError
from hpc_dynamo.router import block_hashes

TRACE_BLOCK = 512  # tokens per hash id in Mooncake's traces
TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """A request at `at` seconds from the start.

    The prompt starts with blocks of `block_tokens` tokens; equal block ids are equal tokens. The
    rest of the prompt is unique.
    """

    at: float
    prompt_tokens: int  # tokens
    response_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = TRACE_BLOCK

    @property
    def hashes(self) -> bytes:
        """Return the block hashes that a frontend sends to the router."""
        return block_hashes(b"".join(self.block_token_ids), self.block_tokens)

    @property
    def block_token_ids(self) -> list[bytes]:
        """Return the token ids of each block, as concatenated uint32."""
        return [_tokens(block, self.block_tokens) for block in self.blocks]


@lru_cache(1 << 14)
def _tokens(block: int, count: int) -> bytes:
    return (block & 0xFFFFFFFF).to_bytes(TOKEN_BYTES, "little") * count


MAX_LINE_BYTES = 16 << 20
MAX_DAYS, MS_PER_DAY = 366, 86_400e3


class TraceLine(msgspec.Struct, frozen=True):
    """A request in the format of Mooncake's traces (FAST '25): milliseconds, tokens, block ids."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_trace(path: Path, count: int = 0, speed: float = 1.0) -> list[TraceRequest]:
    """Read `count` requests of a trace (0: all), `speed` times as fast. Raises InputError."""
    try:
        with path.open("rb") as rows:
            bounded = iter(lambda: rows.readline(MAX_LINE_BYTES), b"")  # a sparse file has no lines
            some = islice(bounded, count) if count else bounded
            lines = [_line(row, f"{path}:{i}") for i, row in enumerate(some, 1) if row.strip()]
    except OSError as e:
        raise InputError(f"the trace {path}: {e.strerror}") from e
    if not lines:
        raise InputError(f"the trace {path} has no requests")
    lines.sort(key=lambda line: line.timestamp)
    start = lines[0].timestamp
    if (days := (lines[-1].timestamp - start) / MS_PER_DAY) > MAX_DAYS:
        raise InputError(
            f"the trace {path} covers {days:.0f} days; at most {MAX_DAYS} are possible"
        )
    return [_request(line, (line.timestamp - start) / 1e3 / speed) for line in lines]


def _line(row: bytes, where: str) -> TraceLine:
    try:
        return msgspec.json.decode(row, type=TraceLine)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        hint = "a line: timestamp (ms), input_length, output_length, hash_ids of 512 tokens each"
        raise InputError(f"the trace {where}: {e}", hint=hint) from e


def _request(line: TraceLine, at: float) -> TraceRequest:
    prompt, answer = max(1, line.input_length), max(1, line.output_length)
    return TraceRequest(at, prompt, answer, line.hash_ids[: prompt // TRACE_BLOCK])


@dataclass(frozen=True)
class LoadPhase:
    """Poisson arrivals with uniform lengths from 0.5 to 1.5 times the mean."""

    seconds: float
    rate_hz: float
    prompt_tokens: int
    response_tokens: int


def synthetic_load(phases: Sequence[LoadPhase], seed: int = 0) -> list[TraceRequest]:
    """Return the requests of consecutive phases; prompts have no common prefix."""
    return list(_drawn(phases, random.Random(seed)))


def _drawn(phases: Iterable[LoadPhase], chance: random.Random) -> Iterator[TraceRequest]:
    begin = 0.0
    for phase in phases:
        at = chance.expovariate(phase.rate_hz)
        while at < phase.seconds:
            prompt, answer = (
                _around(mean, chance) for mean in (phase.prompt_tokens, phase.response_tokens)
            )
            yield TraceRequest(begin + at, prompt, answer)
            at += chance.expovariate(phase.rate_hz)
        begin += phase.seconds


def _around(mean: int, chance: random.Random) -> int:
    return max(1, round(chance.uniform(0.5, 1.5) * mean))
