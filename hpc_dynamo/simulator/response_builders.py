"""Builders of responses by the kind of their request, in the forms of vLLM or SGLang."""

from hpc_dynamo.simulator.chat_request import ChatRequest
from hpc_dynamo.simulator.generation_request import CompletionRequest
from hpc_dynamo.simulator.messages_api import MessageBuilder, MessagesRequest
from hpc_dynamo.simulator.response_formats import AnyRequest, ResponseBuilder
from hpc_dynamo.simulator.responses_api import ResponseObjectBuilder, ResponsesRequest
from hpc_dynamo.simulator.sglang_formats import SglangBuilder
from hpc_dynamo.simulator.sglang_typed_formats import (
    SglangMessageBuilder,
    SglangResponseObjectBuilder,
)

VLLM: dict[type[AnyRequest], type[ResponseBuilder]] = {
    CompletionRequest: ResponseBuilder,
    ChatRequest: ResponseBuilder,
    MessagesRequest: MessageBuilder,
    ResponsesRequest: ResponseObjectBuilder,
}
SGLANG: dict[type[AnyRequest], type[ResponseBuilder]] = {
    CompletionRequest: SglangBuilder,
    ChatRequest: SglangBuilder,
    MessagesRequest: SglangMessageBuilder,
    ResponsesRequest: SglangResponseObjectBuilder,
}


def response_builder(kind: type[AnyRequest], *, sglang: bool) -> type[ResponseBuilder]:
    """Return the builder of responses to requests of a kind."""
    return (SGLANG if sglang else VLLM)[kind]
