"""Converts HTTP requests to requests for engines.

The body is parsed one level deep; fields that are not read go to the engine unchanged.
"""

import msgspec

from hpc_dynamo.config import Config, Policy
from hpc_dynamo.dispatch import (
    RESERVED_FIELDS,
    EngineRequest,
    PromptTokenizer,
    RequestBuilder,
    RequestContext,
)
from hpc_dynamo.engines import CHAT, COMPLETIONS, Body, adapter_fields
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.multipart import Fields
from hpc_dynamo.frontend.request_size import check_items, check_texts, check_values
from hpc_dynamo.frontend.routing_hints import HINTS_FIELD, parse_routing_hints
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import HttpRequest
from hpc_dynamo.json_reader import JsonError, read_fields
from hpc_dynamo.preprocess import TokenIdsOnly
from hpc_dynamo.router import RoutingRequest, RunView

ENDPOINT_FIELDS = frozenset({*RESERVED_FIELDS, HINTS_FIELD})
NAME = msgspec.json.Decoder(str | None)


class RequestTranslator:
    """Translates the requests of one model."""

    def __init__(
        self, config: Config, tokenizer: PromptTokenizer, stats: FrontendStats, model: str = ""
    ) -> None:
        self._config, self._stats, self._model = config, stats, model
        self.builder = RequestBuilder(config, tokenizer, model)

    @property
    def notice(self) -> str:
        """Return why texts are not routed by KV cache, and what to try.

        Empty if they are, or if the policy of the router does not need the tokenizer.
        """
        by_cache = self._config.router.policy is Policy.kv
        tokenizer = self.builder.tokenizer
        return str(tokenizer) if by_cache and isinstance(tokenizer, TokenIdsOnly) else ""

    async def engine_request(
        self, request: HttpRequest, body: Body, request_id: str, view: RunView
    ) -> EngineRequest:
        """Return the request for an engine; `body` is the parsed body. Raises ApiError."""
        content, context = request.body, self._context(request, body, view)
        removed = body.keys() & ENDPOINT_FIELDS
        adapter = adapter_fields(self._config, context.adapter) if context.adapter else {}
        replaced = adapter or self._served_name(body, view)
        if removed or replaced:
            body = {k: v for k, v in body.items() if k not in removed} | replaced
            content = msgspec.json.encode(body)
        headers = [(b"x-request-id", request_id.encode())]
        result = await self.builder.build(_target(request), content, body, context, headers)
        self._stats.prompt_tokens += result.routing.prompt_tokens
        return result

    async def routing_request(
        self, request: HttpRequest, body: Body, view: RunView
    ) -> RoutingRequest:
        """Return the routing request for a chat or completion with this body."""
        path = CHAT if "messages" in body else COMPLETIONS
        context = self._context(request, body, view)
        return await self.builder.routing_request(path, body, context)

    def multipart_request(
        self, request: HttpRequest, fields: Fields, request_id: str
    ) -> EngineRequest:
        """Return the request for a form, forwarded unchanged. Raises ApiError."""
        if forbidden := sorted({name for name, _ in fields} & ENDPOINT_FIELDS):
            raise ApiError(400, f"the form has fields that only the endpoint may set: {forbidden}")
        self.builder.check_form(fields)
        hints = parse_routing_hints(request.headers, {})
        routing = RoutingRequest(may_disaggregate=False, hints=hints, model=self._model)
        content_type = request.headers["content-type"].encode("latin-1")
        headers = [(b"x-request-id", request_id.encode()), (b"content-type", content_type)]
        return EngineRequest(_target(request), request.body, {}, routing, headers)

    def _served_name(self, body: Body, view: RunView) -> Body:
        """Return the served name in place of the full hub id, which engines do not know."""
        aliases = view.model(self._model).aliases
        name = aliases.get(requested_model(body) or "") if aliases else None
        return {"model": name} if name else {}

    def _context(self, request: HttpRequest, body: Body, view: RunView) -> RequestContext:
        available = view.model(self._model)
        name = requested_model(body) if available.adapters else None
        return RequestContext(
            hints=parse_routing_hints(request.headers, body),
            adapter=name if name in available.adapters else None,
            context_tokens=available.context_tokens,
            max_context_tokens=available.max_context_tokens,
        )


def _target(request: HttpRequest) -> str:
    return f"{request.path}?{request.query}" if request.query else request.path


def requested_model(body: Body) -> str | None:
    """Return the model that a body names. Raises ApiError if it is not a string."""
    try:
        name: str | None = NAME.decode(body.get("model", b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ApiError(400, "model must be a string", param="model") from e
    return name


def read_body(content: bytes, max_items: int) -> Body:
    """Return the fields of a request body. Raises ApiError, also for more than `max_items`."""
    check_items(content, max_items)
    try:
        body = {**read_fields(content)}
    except JsonError as e:
        raise ApiError(400, f"the body is not a JSON object: {e}") from e
    check_texts(body, max_items)
    check_values(content, body)
    return body
