"""What pre-processing gives: token ids, the reason why there are none, or an error."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from hpc_dynamo.errors import ConfigError, RequestFailed


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of one prompt.

    `data` holds them as uint32 in the machine's order (little endian wherever engines run), four
    bytes a token: a block of n tokens is the slice `data[4 * n * i : 4 * n * (i + 1)]`, which a
    hash takes as it is.
    """

    data: bytes

    @classmethod
    def of(cls, ids: Iterable[int]) -> Self:
        """Raises OverflowError for an id outside of 0 to 2**32 - 1, TypeError for no integer."""
        return cls(array("I", ids).tobytes())

    def __len__(self) -> int:
        return len(self.data) >> 2

    @property
    def ids(self) -> memoryview:
        """The ids as a read-only sequence of integers, without a copy."""
        return memoryview(self.data).cast("I")


@dataclass(frozen=True, slots=True)
class UnknownTokens:
    """The engine alone can tell the tokens of this prompt: serve it, route it without them."""

    reason: str


class NoTokenizer(ConfigError):
    """The model folder has no tokenizer that can be used here; its engine may still serve it."""


class PromptRejected(RequestFailed):
    """The model's chat template refuses these messages; engines answer 400 too."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=400)
