"""One answer being made: its tokens, its blocks, when it is complete."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.simulator.token_generator import Voice
from hpc_dynamo.simulator.tokenizer import decode

LONGEST_MEANS = 4  # an answer that may end by itself is at most so many mean lengths long


@dataclass(frozen=True)
class Sampling:
    """What a request wants of its answer. Always greedy: temperature changes nothing here."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    script: tuple[int, ...] = ()  # what the answer has to be, where it is not free

    def limit(self, mean_tokens: int) -> int:
        """The most tokens that the answer can have, for which blocks are set aside."""
        if self.script:
            return min(self.max_tokens, len(self.script))
        if self.ignore_eos:
            return self.max_tokens
        return min(self.max_tokens, max(self.min_tokens, LONGEST_MEANS * mean_tokens))


@dataclass(frozen=True)
class Source:
    """Where a prefilled prompt's blocks lie: vLLM's kv_transfer_params, the part that we read.

    In SGLang's dialect nothing is known of them at first but the room where to ask.
    """

    engine_id: str
    request_id: str
    host: str
    port: int
    blocks: tuple[int, ...]
    room: int | None = None  # to be entered at `port`, which tells the rest; see rooms


def _nobody() -> None:
    pass


@dataclass(eq=False)
class Job:
    """One prompt and its answers.

    `on_news` is called when there is something new to read: at the end, and where `streaming`
    after each step that gave it tokens. It must not raise.
    """

    id: str
    prompt: list[int]
    sampling: Sampling
    streaming: bool = False
    adapter: str = ""  # LoRA's name; empty: the model itself
    produce: bool = False  # keep the prompt's blocks for a decode worker
    source: Source | None = None  # pull the prompt's blocks instead of computing them
    room: int | None = None  # where a decode worker asks for the blocks (SGLang's dialect) ...
    kept: bool = False  # ... and has not taken them yet: the answer waits for that
    choices: list["Answer"] = field(default_factory=list)
    on_news: Callable[[], None] = _nobody
    handover: dict[str, object] | None = None  # kv_transfer_params for the decode worker

    @property
    def done(self) -> bool:
        return not self.kept and all(answer.finish is not None for answer in self.choices)


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
    finish: str | None = None  # stop, length, abort, error
    stop_reason: str | None = None
    error: HpcDynamoError | None = None
    voice: Voice | None = None
    _text: str = ""  # kept up only where stop strings must be found in it
    _given: int = 0  # tokens, or characters where there are stop strings

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.job.prompt)
        self.limit = self.job.sampling.limit(self.mean_tokens)

    @property
    def prompt_blocks(self) -> int:
        return -(-self.prompt_tokens // self.block_size)

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def said(self) -> int:
        """How many tokens of the answer there are."""
        return len(self.tokens) - self.prompt_tokens

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
        assert self.voice is not None, "no token before the prompt is computed"
        i = self.said
        token = self.voice.token(i)
        self.tokens.append(token)
        sampling = self.job.sampling
        if sampling.stop:
            self._find_stop(token)
        if self.finish is None:
            self.finish = self._ending(i, sampling)

    def _ending(self, i: int, sampling: Sampling) -> str | None:
        """Why the answer is complete with its token i, or None."""
        assert self.voice is not None, "see speak"
        said = i + 1
        if sampling.script and self.voice.ends(i):
            return "stop"
        if said >= sampling.max_tokens:
            return "length"
        may_end = not (sampling.ignore_eos or sampling.script) and said >= sampling.min_tokens
        return "stop" if may_end and (said >= self.limit or self.voice.ends(i)) else None

    def news(self) -> str:
        """The text since the last call. What may be the beginning of a stop string waits."""
        if not self.job.sampling.stop:
            start, self._given = self.prompt_tokens + self._given, self.said
            return decode(self.tokens[start:])
        held = 0 if self.finish else max(map(len, self.job.sampling.stop)) - 1
        start, self._given = self._given, max(self._given, len(self._text) - held)
        return self._text[start : self._given]

    def _find_stop(self, token: int) -> None:
        searched = max(0, len(self._text) - max(map(len, self.job.sampling.stop)))
        self._text += decode([token])
        if self.said < self.job.sampling.min_tokens:
            return
        found = [(self._text.find(stop, searched), stop) for stop in self.job.sampling.stop]
        hits = [hit for hit in found if hit[0] >= 0]
        if hits:
            at, self.stop_reason = min(hits)
            self._text, self.finish = self._text[:at], "stop"
