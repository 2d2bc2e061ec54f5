"""Formats of the streams that can continue on another worker, one per path.

A continuation is a stream of /v1/completions, whatever the client's path is: only that path takes
token ids. A format has four parts:

- `chat_body`: the request, as a body of /v1/chat/completions (or /v1/completions)
- `add`: reads an event that the client has into a PartialAnswer
- `repeat`: adapts an event of the same request on another worker, if no token was sent before
- `writer`: writes the chunks of a continuation as events of the client's stream
"""

from hpc_dynamo.dispatch.stream_formats.base import EventWriter, StreamFormat
from hpc_dynamo.dispatch.stream_formats.chunks import ChunkStreamFormat
from hpc_dynamo.dispatch.stream_formats.messages import MessageStreamFormat
from hpc_dynamo.dispatch.stream_formats.responses import ResponseStreamFormat
from hpc_dynamo.engines import CHAT, COMPLETIONS, MESSAGES, RESPONSES

STREAM_FORMATS: dict[str, StreamFormat] = {
    CHAT: ChunkStreamFormat(chat=True),
    COMPLETIONS: ChunkStreamFormat(chat=False),
    MESSAGES: MessageStreamFormat(),
    RESPONSES: ResponseStreamFormat(),
}

__all__ = ["STREAM_FORMATS", "EventWriter", "StreamFormat"]
