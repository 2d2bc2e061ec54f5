"""Results of preprocessing: token ids, the reason why there are none, or an error."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from hpc_dynamo.errors import ConfigError, RequestFailed

# Fields of a body that affect the token ids of its prompt. No others are decoded.
PROMPT_FIELDS = frozenset(
    {
        "add_generation_prompt", "add_special_tokens", "chat_template", "chat_template_kwargs",
        "continue_final_message", "documents", "media_io_kwargs", "messages",
        "mm_processor_kwargs", "prompt", "prompt_embeds", "reasoning_effort", "suffix", "tools",
        "truncate_prompt_tokens",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of one prompt.

    `data` holds them as uint32 in the byte order of the machine, four bytes per token. A block of n
    tokens is the slice `data[4 * n * i : 4 * n * (i + 1)]`, which can be hashed without a copy.

    `placeholders` of the ids stand for media (media_prompt.py). The ids before `text_end` are those
    of the engine; -1: all.
    """

    data: bytes
    text_end: int = -1
    placeholders: int = 0

    @classmethod
    def of(cls, ids: Iterable[int]) -> Self:
        """Raises OverflowError for an id outside of 0 to 2**32 - 1, TypeError for other types."""
        return cls(array("I", ids).tobytes())

    def __len__(self) -> int:
        return len(self.data) >> 2

    @property
    def least(self) -> int:
        """Return the number of tokens that the prompt has at least, without those of media."""
        return len(self) - self.placeholders

    @property
    def ids(self) -> memoryview:
        """Return the ids as a read-only sequence of integers, without a copy."""
        return memoryview(self.data).cast("I")


@dataclass(frozen=True, slots=True)
class UnknownTokens:
    """Only the engine can tokenize this prompt. It is served, but routed without token ids."""

    reason: str


class NoTokenizer(ConfigError):
    """The model folder has no tokenizer that can be used here. Its engine may still serve it."""


class PromptTooLong(RequestFailed):
    """A text has more tokens than the caller asked for. It was not tokenized."""

    def __init__(self, max_tokens: int) -> None:
        super().__init__(f"the prompt has more than {max_tokens} tokens", status=400)


def is_failure(error: BaseException) -> bool:
    """Return True for exceptions, and for a panic of a Rust library, which is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
