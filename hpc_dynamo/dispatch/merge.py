"""Merge the responses of a fan-out, JSON or events of streams, into one response.

Choices are numbered as OpenAI numbers them: sample j of prompt i is choice i * n + j. `usage`
counts a prompt once, as SGLang does (entrypoints/openai/usage_processor.py), and sums all generated
tokens. All other fields are those of the first response; id, creation time, model and fingerprint
of a stream are those of the first event.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from hpc_dynamo.engines import Body
from hpc_dynamo.http.sse import DONE, DONE_EVENT, EventParser, encode_event

Raw = msgspec.Raw
Choices = list[dict[str, Raw]]

CHOICES = msgspec.json.Decoder(Choices)
NUMBER = msgspec.json.Decoder(int)
USAGE = msgspec.json.Decoder(dict[str, Any] | None)
EVENT = msgspec.json.Decoder(dict[str, Raw])

PROMPT_USAGE = ("prompt_tokens", "prompt_tokens_details")
STREAM_FIELDS = ("id", "created", "model", "system_fingerprint")


def merge(responses: Sequence[Body]) -> bytes:
    """Return the merged response. `responses` has one body per sample, parsed one level deep.

    Raises msgspec.DecodeError if one is not a response to a completion or chat.
    """
    choices: Choices = []
    for sample, response in enumerate(responses):
        choices += renumber(response["choices"], sample, len(responses))
    choices.sort(key=lambda choice: NUMBER.decode(choice["index"]))
    merged = {**responses[0], "choices": choices}
    if usages := _usages(responses):
        merged["usage"] = merge_usage(usages)
    return msgspec.json.encode(merged)


def renumber(choices: Raw, sample: int, samples: int) -> Choices:
    """Return the choices of one sample with their index in the merged response."""
    return [
        choice | {"index": _raw(NUMBER.decode(choice["index"]) * samples + sample)}
        for choice in CHOICES.decode(choices)
    ]


def merge_usage(usages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the token counts of all samples. Those of the prompt are equal and count once."""
    merged = _sum(usages) | {
        field: usages[0][field] for field in PROMPT_USAGE if field in usages[0]
    }
    if "total_tokens" in merged:
        merged["total_tokens"] = merged.get("prompt_tokens", 0) + merged.get("completion_tokens", 0)
    return merged


def _usages(responses: Sequence[Body]) -> list[dict[str, Any]]:
    """Return the token counts of the responses that have them."""
    usages = (USAGE.decode(response.get("usage", b"null")) for response in responses)
    return [usage for usage in usages if usage]


def _sum(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum field by field; a value that is not a number is taken from the first."""
    total = dict(counts[0])
    for field, value in total.items():
        values = [each.get(field) for each in counts]
        if isinstance(value, dict):
            total[field] = _sum([each for each in values if isinstance(each, dict)])
        elif any(isinstance(each, int) for each in values):
            total[field] = sum(each for each in values if isinstance(each, int))
    return total


class EventMerger:
    """Merges the events of several streams into those of one stream."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._stream_fields: dict[str, Raw] = {}
        self._usages: dict[int, dict[str, Raw]] = {}  # last event, by sample
        self._parsers = [EventParser() for _ in range(samples)]

    def feed(self, sample: int, data: bytes) -> tuple[bytes, bytes]:
        """Return the events to send for this piece of a stream, and the content of an error event.

        After an error the stream cannot be used. Raises msgspec.DecodeError for an event that is
        not part of a completion or chat.
        """
        out = b""
        for content, raw in self._parsers[sample].feed(data):
            if content is None:
                out += raw
            elif content != DONE:
                chunk = EVENT.decode(content)
                if "choices" not in chunk:
                    return out, content
                out += self._chunk(sample, chunk)
        return out, b""

    def _chunk(self, sample: int, chunk: dict[str, Raw]) -> bytes:
        self._stream_fields = self._stream_fields or {
            name: chunk[name] for name in STREAM_FIELDS if name in chunk
        }
        choices = renumber(chunk["choices"], sample, self._samples)
        if not choices:
            self._usages[sample] = chunk
            return b""
        return encode_event({**chunk, **self._stream_fields, "choices": choices})

    def closing(self) -> bytes:
        """Return the end of the merged stream, with its usage if the client requested it."""
        chunks = [self._usages[sample] for sample in sorted(self._usages)]
        usages = _usages(chunks)
        if not usages:
            return DONE_EVENT
        return (
            encode_event({**chunks[0], **self._stream_fields, "usage": merge_usage(usages)})
            + DONE_EVENT
        )


def _raw(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))
