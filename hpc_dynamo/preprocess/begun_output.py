"""Token ids of a prompt and of an output that has begun, so that an engine can continue it."""

from collections.abc import Callable
from typing import NamedTuple

from hpc_dynamo.preprocess.tokens import Tokens

Encode = Callable[[str, bool], Tokens]
"""(text, whether to add special tokens around it) -> its tokens."""


class BegunOutput(NamedTuple):
    """Token ids of a prompt, and of an output that follows it."""

    prompt: Tokens
    output: Tokens


def after_text(encode: Encode, prompt: str, text: str, *, special: bool) -> BegunOutput:
    """Return the ids of a prompt and of the output `text`.

    Some tokenizers encode the beginning of a text differently. Therefore both are encoded together,
    unless that changes the ids of the prompt.
    """
    before, both = encode(prompt, special).data, encode(prompt + text, special).data
    if both.startswith(before):
        return BegunOutput(Tokens(before), Tokens(both[len(before) :]))
    return BegunOutput(Tokens(before), encode(text, False))
