"""Conversion of HTTP requests to work for the dispatcher.

The body is read one level deep: fields that are not read go to the engine unchanged.
"""

import msgspec

from hpc_dynamo.config import Config, Policy
from hpc_dynamo.dispatch import (
    RESERVED_FIELDS,
    EngineRequest,
    PromptTokenizer,
    RequestBuilder,
    RequestContext,
    nested_reserved_fields,
)
from hpc_dynamo.engines import CHAT, COMPLETIONS, Body, adapter_fields
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.multipart import form_fields
from hpc_dynamo.frontend.openapi import POST_OPERATIONS
from hpc_dynamo.frontend.routing_hints import HINTS_FIELD, parse_routing_hints
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import HttpRequest
from hpc_dynamo.json_reader import JsonError, read_fields, read_value
from hpc_dynamo.preprocess import TokenIdsOnly
from hpc_dynamo.router import RoutingRequest, RunView

ENDPOINT_FIELDS = RESERVED_FIELDS | {HINTS_FIELD}
VLLM_XARGS = "vllm_xargs"  # whose entries vLLM puts next to its own fields
NAME = msgspec.json.Decoder(str | None)


class RequestTranslator:
    """Prepares requests of one model. `prompts` computes the token ids of their prompts."""

    def __init__(
        self, config: Config, tokenizer: PromptTokenizer, stats: FrontendStats, model: str = ""
    ) -> None:
        self._config, self._stats, self._model = config, stats, model
        self._builder = RequestBuilder(config, tokenizer, model)

    async def limit_tokenizer_memory(self) -> None:
        """See WorkBuilder.keep_bounded."""
        await self._builder.limit_tokenizer_memory()

    @property
    def tokenizer(self) -> PromptTokenizer:
        return self._builder.prompts

    @tokenizer.setter
    def tokenizer(self, prompts: PromptTokenizer) -> None:
        self._builder.prompts = prompts

    @property
    def notice(self) -> str:
        """Return why texts are not routed by KV cache, see Lane.notice."""
        by_cache = self._config.router.policy is Policy.kv
        return str(self.tokenizer) if by_cache and isinstance(self.tokenizer, TokenIdsOnly) else ""

    async def engine_request(
        self, request: HttpRequest, body: Body, own_id: str, view: RunView
    ) -> EngineRequest:
        """`body` is the request's. Raises Refused for what no engine would take."""
        content, given = request.body, self._circumstances(request, body, view)
        extensions = body.keys() & ENDPOINT_FIELDS
        _check_hidden(
            body if request.path not in POST_OPERATIONS else {VLLM_XARGS: body.get(VLLM_XARGS)}
        )
        own = adapter_fields(self._config, given.adapter) if given.adapter else {}
        renamed = own or self._renamed(body, view)
        if extensions or renamed:
            body = {k: v for k, v in body.items() if k not in extensions} | renamed
            content = msgspec.json.encode(body)
        path = _target(request)
        headers = [(b"x-request-id", own_id.encode())]
        work = await self._builder.build(path, content, body, given, headers)
        self._stats.prompt_tokens += work.routing.prompt_tokens
        return work

    async def routing_request(
        self, request: HttpRequest, body: Body, view: RunView
    ) -> RoutingRequest:
        """Return the routing request for a chat or completion with this body."""
        path = CHAT if "messages" in body else COMPLETIONS
        given = self._circumstances(request, body, view)
        return await self._builder.routing_request(path, request.body, body, given)

    def multipart_request(self, request: HttpRequest, own_id: str) -> EngineRequest:
        """Return the work for a form, such as audio, forwarded unchanged. Raises Refused."""
        fields = form_fields(request.body)
        if forbidden := sorted(fields.keys() & ENDPOINT_FIELDS):
            raise ApiError(400, f"the form has fields that only the endpoint may set: {forbidden}")
        _check_hidden({VLLM_XARGS: fields[VLLM_XARGS].encode() if VLLM_XARGS in fields else None})
        kind = (b"content-type", request.headers["content-type"].encode("latin-1"))
        ask = RoutingRequest(
            may_disaggregate=False,
            hints=parse_routing_hints(request.headers, {}),
            model=self._model,
        )
        headers = [(b"x-request-id", own_id.encode()), kind]
        return EngineRequest(_target(request), request.body, {}, ask, headers)

    def _renamed(self, body: Body, view: RunView) -> Body:
        """Replace the full hub id, which the engine does not know, by the served name."""
        aliases = view.model(self._model).aliases
        name = aliases.get(requested_model(body) or "") if aliases else None
        return {"model": name} if name else {}

    def _circumstances(self, request: HttpRequest, body: Body, view: RunView) -> RequestContext:
        offer = view.model(self._model)
        name = requested_model(body) if offer.adapters else None
        return RequestContext(
            hints=parse_routing_hints(request.headers, body),
            adapter=name if name in offer.adapters else None,
            context_tokens=offer.context_tokens,
        )


def _check_hidden(body: Body) -> None:
    """Refuse reserved fields inside of other fields: some engine paths read them there. Raises
    Refused."""
    for name, value in body.items():
        if value is None:
            continue
        try:
            found = nested_reserved_fields(read_value(bytes(value)))
        except JsonError as e:
            raise ApiError(400, f"{name} is not JSON: {e}", param=name) from e
        if found:
            what = f"{name} holds {', '.join(sorted(found))}, which only the endpoint may set"
            raise ApiError(400, what, param=name)


def _target(request: HttpRequest) -> str:
    return f"{request.path}?{request.query}" if request.query else request.path


def requested_model(body: Body) -> str | None:
    """What a body names. Raises Refused for what cannot be a name."""
    try:
        name: str | None = NAME.decode(body.get("model", b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ApiError(400, "model must be a string", param="model") from e
    return name


def read_body(content: bytes) -> Body:
    """Return the fields of a request's body. Raises Refused."""
    try:
        return {**read_fields(content)}
    except JsonError as e:
        raise ApiError(400, f"the body is not a JSON object: {e}") from e
