"""SGLang's responses to /v1/messages and /v1/responses. See `sglang_formats`."""

from typing import Any

from hpc_dynamo.http.sse import encode_typed_events
from hpc_dynamo.simulator.messages_api import MessageBuilder
from hpc_dynamo.simulator.responses_api import ResponseObjectBuilder, ResponsesRequest
from hpc_dynamo.simulator.sequence import OutputSequence, SequenceGroup
from hpc_dynamo.simulator.sglang_formats import cached_tokens

Json = dict[str, Any]


class SglangMessageBuilder(MessageBuilder):
    """Builds the response to a MessagesRequest. Cached tokens are counted apart from the others."""

    def complete(self, groups: list[SequenceGroup]) -> Json:
        message = super().complete(groups)
        del message["kv_transfer_params"]
        counted = message["usage"] | _message_usage(groups[0])
        return _without_empty_stop(message) | {"usage": counted}

    def opening(self, sequences: list[OutputSequence]) -> bytes:
        self._block_begun = False
        usage = {"output_tokens": 0, **_message_usage(sequences[0].group)}
        message = self._message([], {"prompt_tokens": 0, "completion_tokens": 0})
        return encode_typed_events({"type": "message_start", "message": message | {"usage": usage}})

    def closing(self, groups: list[SequenceGroup]) -> bytes:
        sequence = groups[0].choices[0]
        delta = _without_empty_stop(self._stop(sequence))
        ended = {"delta": delta, "usage": {"output_tokens": sequence.output_length}}
        return encode_typed_events({"type": "message_delta", **ended}, {"type": "message_stop"})


class SglangResponseObjectBuilder(ResponseObjectBuilder):
    """Builds the response to a ResponsesRequest."""

    def closing(self, groups: list[SequenceGroup]) -> bytes:
        items = [self._item("completed", [self._part(self._text)])] if self._text else []
        ended = self._ended(groups, items)
        return self._events((f"response.{ended['status']}", {"response": ended}))

    def complete(self, groups: list[SequenceGroup]) -> Json:
        response = super().complete(groups)
        del response["kv_transfer_params"]
        return response

    def _part(self, text: str) -> Json:
        return super()._part(text) | {"logprobs": None}

    def _item(self, status: str, content: list[Json]) -> Json:
        return super()._item(status, content) | {"phase": "final_answer"}

    def _ended(self, groups: list[SequenceGroup], items: list[Json]) -> Json:
        response = super()._ended(groups, items)
        details = {"cached_tokens": cached_tokens(groups[0]), "cache_write_tokens": 0}
        response["usage"] |= {"input_tokens_details": details}
        return response | {"text": {"format": {"type": "text"}}}

    def _response(self, status: str, output: list[Json], usage: Json | None) -> Json:
        request = self._request
        assert isinstance(request, ResponsesRequest)
        fixed: Json = {
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {},
            "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
            "store": True, "text": None, "top_p": None, "truncation": "disabled", "user": None,
        }  # fmt: skip
        own = {"instructions": request.instructions, "temperature": request.temperature}
        own["max_output_tokens"] = request.max_output_tokens
        return super()._response(status, output, usage) | fixed | own


def _message_usage(group: SequenceGroup) -> Json:
    cached = cached_tokens(group)
    usage = {"input_tokens": len(group.prompt) - cached}
    return usage | ({"cache_read_input_tokens": cached} if cached else {})


def _without_empty_stop(fields: Json) -> Json:
    return {k: v for k, v in fields.items() if (k, v) != ("stop_sequence", None)}
