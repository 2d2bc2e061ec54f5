"""The trace as requests: scaled in time and size, with prompts of token ids.

A line of the trace (Mooncake, FAST '25) has `timestamp` in milliseconds, and `input_length` and
`output_length` in tokens. `hash_ids` has one id per 512 tokens of the prompt: equal ids mean equal
tokens up to there. An id always becomes the same tokens. The tokens after the last whole block are
unique to the request.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import msgspec

from benchmarks.common.workload import MODEL
from hpc_dynamo.errors import InputError, UsageError

BLOCK = 512  # tokens of the trace per hash id
ENGINE_BLOCK = 16  # scaled tokens per cache block of the engines
LEAST, MOST = 1_000, 49_000  # ordinary token ids of every tokenizer


@dataclass(frozen=True)
class Scale:
    """Scale of the load: `compress` divides seconds, `shrink` divides tokens and blocks."""

    compress: float
    shrink: int

    def __post_init__(self) -> None:
        """Raise UsageError if a block of the trace is not a whole number of engine blocks."""
        if self.shrink < 1 or BLOCK % (self.shrink * ENGINE_BLOCK):
            fit = [2**i for i in range(6)]
            what = f"--shrink {self.shrink}: {BLOCK} tokens must be whole blocks of {ENGINE_BLOCK}"
            raise UsageError(what, hint=f"one of {', '.join(map(str, fit))}")
        if not self.compress > 0:
            raise UsageError(f"--compress {self.compress:g}: must be above 0")

    @property
    def block_tokens(self) -> int:
        """Return the scaled tokens of a hash id."""
        return BLOCK // self.shrink

    def trace_s(self, seconds: float) -> float:
        """Return the seconds of the trace for real seconds."""
        return seconds * self.compress

    def trace_itl_s(self, seconds: float) -> float:
        """Return the ITL of the trace; a scaled token stands for `shrink` tokens."""
        return seconds * self.compress / self.shrink


class Line(msgspec.Struct, frozen=True):
    """One request of the trace."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One request as it is sent: `due_s` from the start, lengths in scaled tokens."""

    number: int
    due_s: float
    blocks: tuple[int, ...]  # hash ids of its whole blocks
    block_tokens: int
    tail: int  # tokens after the blocks
    answer: int

    @property
    def prompt(self) -> int:
        return len(self.blocks) * self.block_tokens + self.tail

    def ids(self) -> list[int]:
        """Return the token ids of the prompt as JSON."""
        return msgspec.json.decode(b"[%b]" % self._prompt(), type=list[int])

    def body(self) -> bytes:
        """Return the body of a streamed /v1/completions with `answer` tokens and usage."""
        return (
            b'{"model":"%b","stream":true,"stream_options":{"include_usage":true},'
            b'"ignore_eos":true,"temperature":0,"max_tokens":%d,"prompt":[%b]}'
        ) % (MODEL.encode(), self.answer, self._prompt())

    def _prompt(self) -> bytes:
        parts = [_shared(f"block {block}", self.block_tokens) for block in self.blocks]
        if self.tail:
            parts.append(_drawn(f"tail {self.number}", self.tail))
        return b",".join(parts)


def _drawn(name: str, count: int) -> bytes:
    """Return `count` token ids as JSON, the same in every run for a name."""
    return ",".join(map(str, random.Random(name).choices(range(LEAST, MOST), k=count))).encode()


_shared = lru_cache(maxsize=200_000)(_drawn)


def scaled(number: int, line: Line, start_ms: float, scale: Scale) -> Request:
    """Return a line as a request. Lengths are rounded; no prompt or response is empty."""
    whole, rest = divmod(line.input_length, BLOCK)
    blocks = line.hash_ids[:whole]
    tail = round(rest / scale.shrink)
    return Request(
        number=number,
        due_s=(line.timestamp - start_ms) / 1e3 / scale.compress,
        blocks=blocks,
        block_tokens=scale.block_tokens,
        tail=tail or (0 if blocks else 1),
        answer=max(1, round(line.output_length / scale.shrink)),
    )


def read(path: Path, count: int, scale: Scale, skip: int = 0) -> list[Request]:
    """Return `count` requests after the first `skip`; 0: all. Raises InputError."""
    try:
        with path.open("rb") as rows:
            lines = [
                _line(row, path) for row in islice(rows, skip, skip + count if count else None)
            ]
    except OSError as e:
        hint = "--trace FILE; it is in kvcache-ai/Mooncake, FAST25-release/traces"
        raise InputError(f"the trace {path}: {e.strerror}", hint=hint) from e
    if not lines:
        raise InputError(f"the trace {path} has no requests")
    return list(_requests(lines, scale))


def _requests(lines: Iterable[Line], scale: Scale) -> Iterable[Request]:
    ordered = sorted(lines, key=lambda line: line.timestamp)
    for number, line in enumerate(ordered):
        yield scaled(number, line, ordered[0].timestamp, scale)


def _line(row: bytes, path: Path) -> Line:
    try:
        return msgspec.json.decode(row, type=Line)
    except msgspec.DecodeError as e:
        raise InputError(
            f"the trace {path}: {e}", hint="one JSON object a line, see trace.py"
        ) from e
