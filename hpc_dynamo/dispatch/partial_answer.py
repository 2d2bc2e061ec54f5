"""Content of a stream that was cut off, as far as its client received it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hpc_dynamo.http.sse import DONE, EventParser

Json = dict[str, Any]


@dataclass
class PartialAnswer:
    """Content of the events that a client has received. Mutable while it is read."""

    # Fields that all chunks share, such as the id; the message or the response in other formats.
    head: Json = field(default_factory=dict)
    text: str = ""
    token_ids: list[int] = field(default_factory=list)  # only if the client asked for them
    prompt_token_ids: list[int] = field(default_factory=list)
    logprobs: int = 0  # tokens with log-probabilities
    role_sent: bool = False
    text_ended: bool = False  # the client knows that no text follows
    finished: bool = False  # the client also knows why
    usage: Json | None = None  # last one that was sent, with the names of chunks
    usage_sent: bool = False  # at the end of the stream
    done: bool = False
    # Field of a delta that cannot be converted back to the generated text.
    parsed: str = ""
    events: int = 0
    sent: set[str] = field(default_factory=set)  # types of events; chunks have none
    item: Json = field(default_factory=dict)  # address of the text in events of /v1/responses

    @property
    def empty(self) -> bool:
        """Return True if no token was sent."""
        return not (self.text or self.token_ids or self.logprobs or self.parsed or self.finished)


def read_answer(content: bytes, add: Callable[[PartialAnswer, Json], None]) -> PartialAnswer:
    """Return the content of a stream; `add` adds an event in the format of the stream.

    Raises msgspec.DecodeError, or TypeError, ValueError, KeyError or AttributeError if the stream
    has another format.
    """
    answer = PartialAnswer()
    for event in EventParser().feed(content):
        if event.data == DONE:
            answer.done = True
        elif event.data:
            add(answer, msgspec.json.decode(event.data))
            answer.events += 1
    return answer
