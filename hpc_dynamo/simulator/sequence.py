"""A prompt and the output sequences that the scheduler generates for it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.simulator.token_generator import TokenGenerator
from hpc_dynamo.simulator.tokenizer import decode

MAX_MEANS = 4  # longest output, in mean lengths, unless ignore_eos is set


@dataclass(frozen=True)
class SamplingParams:
    """Limits of a request's output. Decoding is always greedy: temperature has no effect."""

    max_tokens: int
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    fixed_output: tuple[int, ...] = ()  # token ids of the whole output; empty: generated words

    def max_output_tokens(self, mean_tokens: int) -> int:
        """Return the largest possible output length, for which blocks are reserved."""
        if self.fixed_output:
            return min(self.max_tokens, len(self.fixed_output))
        if self.ignore_eos:
            return self.max_tokens
        return min(self.max_tokens, MAX_MEANS * mean_tokens)


@dataclass(frozen=True)
class RemoteBlocks:
    """Location of a prefilled prompt's KV blocks on another rank.

    With SGLang's protocol only host, port and room are known at first. The bootstrap server
    at that address returns the rest.
    """

    engine_id: str
    request_id: str
    host: str
    port: int
    blocks: tuple[int, ...]
    room: int | None = None  # bootstrap room; None: the other fields are complete
    # Data-parallel rank that computes the prompt of the room. None: the remainder of its number.
    prefill_dp_rank: int | None = None


@dataclass(eq=False)
class SequenceGroup:
    """One prompt and its output sequences (`n` choices).

    `on_update` is called when there is new output: after each step with new tokens if
    `streaming`, otherwise only at the end. It must not raise.
    """

    id: str
    prompt: list[int]
    sampling: SamplingParams
    streaming: bool = False
    adapter: str = ""  # name of a LoRA adapter; empty: the base model
    dp_rank: int | None = None  # data-parallel rank; None: not selected yet
    keep_blocks: bool = False  # keep the prompt's blocks for a decode worker
    remote_blocks: RemoteBlocks | None = None  # pull the prompt's blocks instead of computing them
    room: int | None = None  # bootstrap room where a decode worker requests the blocks (SGLang)
    awaiting_pull: bool = False  # the blocks in the room were not pulled yet
    choices: list["OutputSequence"] = field(default_factory=list)
    on_update: Callable[[], None] = lambda: None
    kv_transfer_params: dict[str, object] | None = None  # for the decode worker

    @property
    def done(self) -> bool:
        return not self.awaiting_pull and all(c.finish_reason is not None for c in self.choices)


@dataclass(eq=False)
class OutputSequence:
    """One choice of a group. Only the scheduler changes it."""

    group: SequenceGroup
    index: int
    tokens: list[int]  # prompt, then output
    block_hashes: list[bytes]  # one per full block
    arrived_at: float  # event loop time, seconds
    block_size: int
    mean_tokens: int
    remote_blocks: RemoteBlocks | None = None  # set if this sequence pulls them
    blocks: list[int] = field(default_factory=list)
    computed_tokens: int = 0  # tokens whose KV is in the blocks
    cached_tokens: int = 0  # the part of them that was not computed here
    finish_reason: str | None = None  # stop, length, abort, error
    stop_reason: str | None = None  # the stop string that was found
    error: HpcDynamoError | None = None
    generator: TokenGenerator | None = None  # set when the prompt is computed
    _text: str = ""  # only maintained if there are stop strings
    _emitted: int = 0  # tokens, or characters if there are stop strings

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.group.prompt)
        self.max_output_tokens = self.group.sampling.max_output_tokens(self.mean_tokens)

    @property
    def prompt_blocks(self) -> int:
        return -(-self.prompt_tokens // self.block_size)

    @property
    def max_blocks(self) -> int:
        """Return the number of blocks that the longest possible output needs."""
        return -(-(self.prompt_tokens + self.max_output_tokens) // self.block_size)

    @property
    def output_tokens(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def output_length(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    def take_blocks(self) -> list[int]:
        """Transfer ownership of the blocks to the caller, which must release them."""
        blocks, self.blocks = self.blocks, []
        return blocks

    def append_token(self) -> None:
        """Generate the next token. Sets `finish_reason` if the output is complete with it."""
        assert self.generator is not None, "no token before the prompt is computed"
        position = self.output_length
        token = self.generator.token(position)
        self.tokens.append(token)
        if self.group.sampling.stop:
            self._find_stop(token)
        if self.finish_reason is None:
            self.finish_reason = self._finish(position, self.generator.ends(position))

    def _finish(self, position: int, ends: bool) -> str | None:
        """Return the finish reason if the output is complete with the token at `position`."""
        sampling, length = self.group.sampling, position + 1
        if sampling.fixed_output and ends:
            return "stop"
        if length >= sampling.max_tokens:
            return "length"
        if sampling.ignore_eos or sampling.fixed_output:
            return None
        return "stop" if ends or length >= self.max_output_tokens else None

    def new_text(self) -> str:
        """Return the text since the last call, without a possible start of a stop string."""
        if not self.group.sampling.stop:
            start, self._emitted = self.prompt_tokens + self._emitted, self.output_length
            return decode(self.tokens[start:])
        held_back = 0 if self.finish_reason else max(map(len, self.group.sampling.stop)) - 1
        start, self._emitted = self._emitted, max(self._emitted, len(self._text) - held_back)
        return self._text[start : self._emitted]

    def _find_stop(self, token: int) -> None:
        searched = max(0, len(self._text) - max(map(len, self.group.sampling.stop)))
        self._text += decode([token])
        found = [(self._text.find(stop, searched), stop) for stop in self.group.sampling.stop]
        hits = [hit for hit in found if hit[0] >= 0]
        if hits:
            at, self.stop_reason = min(hits)
            self._text, self.finish_reason = self._text[:at], "stop"
