"""Interface of the formats, and what several of them use."""

from collections.abc import Mapping
from typing import Any, Protocol

from hpc_dynamo.dispatch.obstacles import NotContinuable, Obstacle
from hpc_dynamo.dispatch.partial_answer import PartialAnswer

Json = dict[str, Any]

# A continuation always counts its tokens if the client's stream has to end with a usage.
WITH_USAGE: Json = {"stream": True, "stream_options": {"include_usage": True}}


class EventWriter(Protocol):
    """Writes a continuation for the client. Holds what the client knows so far."""

    def write(self, choices: list[Json], usage: Json | None, chunk: Json) -> bytes:
        """Return the events for new text, its end, or the token counts of the whole answer.

        `choices` are those of /v1/completions. `chunk` is the one that they are from.
        """

    def end(self) -> bytes:
        """Return the events after all others."""


class StreamFormat(Protocol):
    """Format of one path's streams."""

    def chat_body(self, body: Json) -> Json:
        """Return the request as a body of chunks. Raises NotContinuable."""

    def add(self, answer: PartialAnswer, event: Json) -> None:
        """Add an event that the client has."""

    def repeat(self, answer: PartialAnswer, event: Json) -> Json | None:
        """Return an event of a repeated request with the client's ids; None if it has it."""

    def writer(self, answer: PartialAnswer, body: Json) -> EventWriter: ...


def renamed(body: Json, names: Mapping[str, str], neutral: Mapping[str, tuple[Any, ...]]) -> Json:
    """Return the fields of a body under their names in a chat; those without a name are left out.

    Raises NotContinuable for a field that is in neither table, or not neutral.
    """
    result: Json = {}
    for name, value in body.items():
        if name in names:
            if names[name]:
                result[names[name]] = value
        elif value is not None and value not in neutral.get(name, ()):
            obstacle = Obstacle.tools if name == "tools" else Obstacle.field
            raise NotContinuable(obstacle, f"the request sets {name}")
    return result


def plain_text(content: Any, kinds: tuple[str, ...]) -> Any:
    """Return a message's content with parts of a chat. Raises NotContinuable if it is not text.

    Engines show a single part to the chat template as a string, and ignore empty parts.
    """
    if isinstance(content, str):
        return content
    if any(part.get("type") not in kinds for part in content):
        raise NotContinuable(Obstacle.content, "the messages are not only text")
    parts = [{"type": "text", "text": part["text"]} for part in content if part["text"]]
    if not parts:
        raise NotContinuable(Obstacle.prompt, "a message is empty")
    return parts[0]["text"] if len(parts) == 1 else parts
