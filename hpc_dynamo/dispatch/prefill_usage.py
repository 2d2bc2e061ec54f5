"""Usage of a response whose prompt another worker computed.

A decode worker that receives the KV cache of a prompt reports no cached tokens. Only the prefill
worker knows what it found in its prefix cache. So the fields about the prompt come from its
response, in whole responses and in the events of streams.
"""

import asyncio
from collections.abc import Mapping

import msgspec

from hpc_dynamo.dispatch.worker_client import GRACE_S, OBJECT_DECODER, IncomingResponse
from hpc_dynamo.engines import Body
from hpc_dynamo.http import ByteSink
from hpc_dynamo.http.sse import MEDIA_TYPE, EventParser

# Fields of `usage` that the prefill worker knows. /v1/messages counts cached tokens apart from
# `input_tokens`.
PROMPT_USAGE = (
    "cache_read_input_tokens",
    "input_tokens",
    "input_tokens_details",
    "prompt_tokens_details",
)
# Fields of an event that may hold a response with a usage.
HOLDERS = ("message", "response")
MARK = b'"usage":{'
EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
USAGE = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)


def prompt_usage(content: bytes) -> Body:
    """Return the fields about the prompt in the usage of a response; empty without usage."""
    try:
        usage = USAGE.decode(OBJECT_DECODER.decode(content).get("usage", b"null")) or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {name: usage[name] for name in PROMPT_USAGE if name in usage}


def with_prompt_usage(content: bytes, prompt: Body) -> bytes:
    """Return a response or the data of an event with other fields about the prompt."""
    if not prompt or MARK not in content:
        return content
    try:
        return msgspec.json.encode(_edited(OBJECT_DECODER.decode(content), prompt))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return content


def _edited(body: Body, prompt: Body) -> Body:
    usage = USAGE.decode(body.get("usage", b"null"))
    # The last event of /v1/messages counts only the output.
    if usage and ("prompt_tokens" in usage or "input_tokens" in usage):
        body["usage"] = usage | prompt
    for name in HOLDERS:
        if name in body and MARK in bytes(body[name]):
            body[name] = _edited(OBJECT_DECODER.decode(body[name]), prompt)
    return body


class ResponseWithPrefillUsage:
    """Response of a decode worker with the prompt's usage from that of the prefill worker, which is
    the result of `prefill`. See worker_client.IncomingResponse."""

    def __init__(self, response: IncomingResponse, prefill: "asyncio.Task[bytes]") -> None:
        self._response, self._prefill = response, prefill

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def read(self) -> bytes:
        content = await self._response.read()
        await asyncio.wait([self._prefill], timeout=GRACE_S)
        return with_prompt_usage(content, _prompt_usage(self._prefill))

    async def relay(self, sink: ByteSink) -> None:
        """Relay a stream, or a long response unchanged."""
        if not self.headers.get("content-type", "").startswith(MEDIA_TYPE):
            await self._response.relay(sink)
            return
        editor = _EventEditor(sink, self._prefill)
        await self._response.relay(editor)
        await asyncio.wait([self._prefill], timeout=GRACE_S)
        editor.flush()


class _EventEditor:
    """ByteSink between a stream and `sink`. An event with usage waits for the prefill worker, which
    has usually responded before. Incomplete events are held back."""

    def __init__(self, sink: ByteSink, prefill: "asyncio.Task[bytes]") -> None:
        self._sink, self._prefill = sink, prefill
        self._held = bytearray()
        self._complete = 0  # bytes of complete events

    def write(self, data: bytes) -> None:
        if not self._held and MARK not in data and data.endswith(EVENT_ENDS):
            self._sink.write(data)
            return
        start = max(self._complete, len(self._held) - len(EVENT_ENDS[-1]))
        self._held += data
        for end in EVENT_ENDS:
            if (at := self._held.rfind(end, start)) >= 0:
                self._complete = max(self._complete, at + len(end))
        if self._prefill.done() or MARK not in self._held[: self._complete]:
            self._send(self._complete)

    def flush(self) -> None:
        """Send what was held back."""
        self._send(len(self._held))

    def _send(self, size: int) -> None:
        events, self._held, self._complete = bytes(self._held[:size]), self._held[size:], 0
        if events:
            self._sink.write(_edited_events(events, _prompt_usage(self._prefill)))

    @property
    def congested(self) -> bool:
        return self._sink.congested

    async def drain(self) -> None:
        await self._sink.drain()


def _edited_events(events: bytes, prompt: Body) -> bytes:
    if not prompt or MARK not in events:
        return events
    for event in EventParser().feed(events):
        if event.data and event.data in events:
            events = events.replace(event.data, with_prompt_usage(event.data, prompt), 1)
    return events


def _prompt_usage(prefill: "asyncio.Task[bytes]") -> Body:
    """Return the fields in the prefill worker's response; empty if it has none, or failed."""
    if not prefill.done() or prefill.cancelled() or prefill.exception():
        return {}
    return prompt_usage(prefill.result())
