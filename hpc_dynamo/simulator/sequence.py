"""One answer being made: its tokens, its blocks, when it is complete."""

import asyncio
from dataclasses import dataclass, field

from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.simulator.language import Speaker
from hpc_dynamo.simulator.tokenizer import decode

LONGEST_MEANS = 4  # an answer that may end by itself is at most so many mean lengths long


@dataclass(frozen=True)
class Sampling:
    """What a request wants of its answer. Always greedy: temperature changes nothing here."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()

    def limit(self, mean_tokens: int) -> int:
        """The most tokens that the answer can have, for which blocks are set aside."""
        if self.ignore_eos:
            return self.max_tokens
        return min(self.max_tokens, max(self.min_tokens, LONGEST_MEANS * mean_tokens))


@dataclass(frozen=True)
class Source:
    """Where a prefilled prompt's blocks lie: vLLM's kv_transfer_params, the part that we read."""

    engine_id: str
    request_id: str
    host: str
    port: int
    blocks: tuple[int, ...]


@dataclass(eq=False)
class Job:
    """One prompt and its `n` answers. `changed` is set when there is something new to read."""

    id: str
    prompt: list[int]
    sampling: Sampling
    streaming: bool = False
    produce: bool = False  # keep the prompt's blocks for a decode worker
    source: Source | None = None  # pull the prompt's blocks instead of computing them
    choices: list["Answer"] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    handover: dict[str, object] | None = None  # kv_transfer_params for the decode worker

    @property
    def done(self) -> bool:
        return all(answer.finish is not None for answer in self.choices)


@dataclass(eq=False)
class Answer:
    """One choice of a job. The scheduler alone changes it."""

    job: Job
    index: int
    tokens: list[int]  # of the prompt, then of the answer
    chain: list[bytes]  # hashes of the full blocks so far
    arrived: float  # by the event loop's clock
    block_size: int
    mean_tokens: int
    source: Source | None = None  # of the blocks, where this answer pulls them
    blocks: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose KV is in the blocks
    cached: int = 0  # of them, not computed here
    stepped: float = 0.0  # when the last token came
    finish: str | None = None  # stop, length, abort, error
    stop_reason: str | None = None
    error: HpcDynamoError | None = None
    speaker: Speaker | None = None
    _text: str = ""  # kept up only where stop strings must be found in it
    _given: int = 0  # tokens, or characters where there are stop strings

    @property
    def prompt_tokens(self) -> int:
        return len(self.job.prompt)

    @property
    def prompt_blocks(self) -> int:
        return -(-self.prompt_tokens // self.block_size)

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def limit(self) -> int:
        return self.job.sampling.limit(self.mean_tokens)

    @property
    def most_blocks(self) -> int:
        """Blocks that the longest possible answer needs."""
        return -(-(self.prompt_tokens + self.limit) // self.block_size)

    def take_blocks(self) -> list[int]:
        """Hands the blocks to the caller, who releases them."""
        blocks, self.blocks = self.blocks, []
        return blocks

    def speak(self) -> None:
        """Say the next token; sets `finish` where the answer is complete with it."""
        assert self.speaker is not None, "no token before the prompt is computed"
        i = len(self.tokens) - self.prompt_tokens
        token = self.speaker.token(i)
        self.tokens.append(token)
        sampling, said = self.job.sampling, i + 1
        if sampling.stop:
            self._find_stop(token)
        if self.finish is None:
            may_end = not sampling.ignore_eos and said >= sampling.min_tokens
            if said >= sampling.max_tokens:
                self.finish = "length"
            elif may_end and (said >= self.limit or self.speaker.ends(i)):
                self.finish = "stop"

    def news(self) -> str:
        """The text since the last call. What may be the beginning of a stop string waits."""
        if not self.job.sampling.stop:
            start, self._given = self.prompt_tokens + self._given, len(self.tokens)
            self._given -= self.prompt_tokens
            return decode(self.tokens[start:])
        held = 0 if self.finish else max(map(len, self.job.sampling.stop)) - 1
        start, self._given = self._given, max(self._given, len(self._text) - held)
        return self._text[start : self._given]

    def _find_stop(self, token: int) -> None:
        searched = max(0, len(self._text) - max(map(len, self.job.sampling.stop)))
        self._text += decode([token])
        if len(self.tokens) - self.prompt_tokens < self.job.sampling.min_tokens:
            return
        found = [(self._text.find(stop, searched), stop) for stop in self.job.sampling.stop]
        hits = [hit for hit in found if hit[0] >= 0]
        if hits:
            at, self.stop_reason = min(hits)
            self._text, self.finish = self._text[:at], "stop"
