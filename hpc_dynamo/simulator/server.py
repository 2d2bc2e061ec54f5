"""HTTP endpoints: OpenAI's, vLLM's additions, metrics and the NIXL side channel."""

import asyncio
import hmac
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec

from hpc_dynamo.http import HttpRequest, ResponseWriter
from hpc_dynamo.json_reader import JsonError, read_value
from hpc_dynamo.simulator import tokenizer
from hpc_dynamo.simulator.api_error import JSON, RequestRejected, error_body, send_json
from hpc_dynamo.simulator.bad_answers import send_bad_answer
from hpc_dynamo.simulator.chat_request import ChatRequest, TokenizeRequest
from hpc_dynamo.simulator.data_parallel import requested_rank, set_rank
from hpc_dynamo.simulator.embeddings import EmbeddingRequest
from hpc_dynamo.simulator.engine_context import EngineContext
from hpc_dynamo.simulator.generation import Generation, sequence_groups
from hpc_dynamo.simulator.generation_request import (
    CompletionRequest,
    DetokenizeRequest,
    check_model,
)
from hpc_dynamo.simulator.injected_failures import FailureInjector
from hpc_dynamo.simulator.kv_handoff import METADATA_PATH
from hpc_dynamo.simulator.kv_transfer_params import KvTransferParams
from hpc_dynamo.simulator.messages_api import MessagesRequest
from hpc_dynamo.simulator.response_builders import response_builder
from hpc_dynamo.simulator.response_formats import AnyRequest
from hpc_dynamo.simulator.responses_api import ResponsesRequest
from hpc_dynamo.simulator.sequence import SequenceGroup
from hpc_dynamo.simulator.sglang_api import ROUTES
from hpc_dynamo.simulator.sglang_errors import (
    check_sglang_lengths,
    check_sglang_request,
    sglang_error_body,
)

T = TypeVar("T")
Handler = Callable[[HttpRequest, ResponseWriter], Awaitable[None]]
JsonHandler = Callable[[HttpRequest], dict[str, Any]]

OPEN_PATHS = ("/health", "/ready", "/version", "/openapi.json")  # all others need the key
VERSION = {"version": "simulator"}


class HttpApi:
    """Handles requests. Requests that arrive before `open` wait for it."""

    def __init__(self, key: str) -> None:
        self._expected = f"Bearer {key}".encode() if key else b""
        self._opened = asyncio.Event()
        self._engine: EngineContext
        self._injector: FailureInjector
        self._asleep = False
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/completions": ("POST", partial(self._generate, CompletionRequest)),
            "/v1/chat/completions": ("POST", partial(self._generate, ChatRequest)),
            "/v1/messages": ("POST", partial(self._generate, MessagesRequest)),
            "/v1/responses": ("POST", partial(self._generate, ResponsesRequest)),
            "/v1/embeddings": ("POST", _json(self._embeddings)),
            "/v1/models": ("GET", _json(self._models)),
            "/tokenize": ("POST", _json(self._tokenize)),
            "/detokenize": ("POST", _json(self._detokenize)),
            "/reset_prefix_cache": ("POST", _json(self._reset_prefix_cache)),
            "/sleep": ("POST", _json(self._sleep)),
            "/wake_up": ("POST", _json(self._wake_up)),
            "/is_sleeping": ("GET", _json(lambda _: {"is_sleeping": self._asleep})),
            "/version": ("GET", _json(lambda _: VERSION)),
            "/openapi.json": ("GET", _json(self._openapi)),
            **{path: (method, self._sglang) for path, method in ROUTES.items()},
            "/metrics": ("GET", self._metrics),
            METADATA_PATH: ("GET", self._nixl_metadata),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._health),
        }

    def open(self, engine: EngineContext) -> None:
        """Start to handle requests."""
        self._engine = engine
        self._injector = FailureInjector(engine.failures, engine.scheduler)
        self._opened.set()

    async def handle(self, request: HttpRequest, reply: ResponseWriter) -> None:
        """Handle one request. Errors become responses in OpenAI's form."""
        await self._opened.wait()
        if self._engine.report_request_id:
            name = request.headers.setdefault("x-request-id", os.urandom(16).hex())
            reply.headers.append((b"x-request-id", name.encode("latin-1")))
        try:
            self._authenticate(request)
            await self._route(request)(request, reply)
        except RequestRejected as e:
            sglang = self._engine.sglang_api is not None
            body = sglang_error_body(e.body, request.path) if sglang else e.body
            send_json(reply, body, e.status)

    def _authenticate(self, request: HttpRequest) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        guarded = bool(self._expected) and request.path not in OPEN_PATHS
        if guarded and not hmac.compare_digest(given, self._expected):
            raise RequestRejected("Invalid or missing API key.", status=401)

    def _route(self, request: HttpRequest) -> Handler:
        method, handler = self._routes.get(request.path, ("", None))
        if handler is None:
            raise RequestRejected("Not Found", status=404)
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            raise RequestRejected("Method Not Allowed", status=405)
        return handler

    async def _generate(
        self, kind: type[AnyRequest], request: HttpRequest, reply: ResponseWriter
    ) -> None:
        engine = self._engine
        body = _read(request, kind, strict=engine.sglang_api is None)
        self._injector.count(request)
        if bad_answer := self._injector.bad_answer:
            send_bad_answer(bad_answer, reply, stream=bool(body.stream))
            return
        if self._asleep:  # vLLM would let the request wait
            raise RequestRejected("this rank is asleep", status=500)
        if engine.pooling:
            raise RequestRejected("Not Found", status=404)
        request_id = _request_id(request)
        try:
            if engine.trtllm:
                body.read_trtllm_params(request.headers, engine.signing_key)
            check_model(body.model, engine.model, *map(str, engine.adapter_names))
            adapter = engine.adapter_names.get(body.model, "")
            model = str(body.model) if adapter else engine.model
            options = {"report_cached": engine.report_cached, "trtllm": engine.trtllm}
            builder_type = response_builder(kind, sglang=engine.sglang_api is not None)
            builder = builder_type(body, request_id, model, **options)
            groups = self._groups(body, request_id, adapter)
            sglang, ranks = engine.sglang_api is not None, len(engine.scheduler.ranks)
            set_rank(groups, requested_rank(request.headers, body, sglang=sglang), ranks)
        except RequestRejected:
            if not engine.trtllm:
                self._decline(body.kv_transfer_params)
            raise
        if engine.sglang and engine.sglang.hangs(body):
            await asyncio.Event().wait()
        end = engine.scheduler.abort
        if engine.sglang_api:
            engine.sglang_api.requests.add(body.rid, groups)
            end = engine.sglang_api.requests.end
        await Generation(reply, builder, groups).run(engine.scheduler, body.choices, end)

    def _groups(self, body: AnyRequest, request_id: str, adapter: str) -> list[SequenceGroup]:
        engine = self._engine
        if engine.sglang_api:
            check_sglang_request(body)
        limit = engine.max_model_len
        groups = sequence_groups(body, request_id, limit, engine.sglang, adapter)
        if engine.sglang_api:
            check_sglang_lengths(groups, limit)
        return groups

    def _decline(self, params: KvTransferParams | None) -> None:
        """Let the prefill rank release the blocks of a request that was rejected here."""
        remote = params.remote_blocks() if params else None
        if remote:
            self._engine.scheduler.decline(remote)

    def _embeddings(self, request: HttpRequest) -> dict[str, Any]:
        self._injector.count(request)
        body, engine = _read(request, EmbeddingRequest), self._engine
        check_model(body.model, engine.model)
        return body.respond(_request_id(request), engine.model, engine.max_model_len)

    def _openapi(self, _: HttpRequest) -> dict[str, Any]:
        routes = self._routes.items()
        paths: dict[str, Any] = {path: {method.lower(): {}} for path, (method, _) in routes}
        return {"openapi": "3.1.0", "info": {"title": "simulator", **VERSION}, "paths": paths}

    def _models(self, _: HttpRequest) -> dict[str, Any]:
        name, length = self._engine.model, self._engine.max_model_len
        card = {"object": "model", "created": 0, "owned_by": "hpc-dynamo"}
        cards = [{"id": name, **card, "parent": None, "max_model_len": length}]
        for adapter, path in self._engine.adapters.items():
            cards.append({"id": adapter, **card, "root": path, "parent": name})
        return {"object": "list", "data": cards}

    def _tokenize(self, request: HttpRequest) -> dict[str, Any]:
        tokens, length = _read(request, TokenizeRequest).tokens(), self._engine.max_model_len
        return {"count": len(tokens), "max_model_len": length, "tokens": tokens}

    def _detokenize(self, request: HttpRequest) -> dict[str, Any]:
        return {"prompt": tokenizer.decode(_read(request, DetokenizeRequest).tokens)}

    def _reset_prefix_cache(self, _: HttpRequest) -> dict[str, Any]:
        return {"success": self._engine.scheduler.reset_cache()}

    def _sleep(self, _: HttpRequest) -> dict[str, Any]:
        """Drop the prefix cache and reject requests. A busy rank refuses; vLLM would not."""
        if not self._engine.sleep_mode:
            raise RequestRejected("Not Found", status=404)
        if not self._engine.scheduler.reset_cache():
            raise RequestRejected("this rank is busy", status=500)
        self._asleep = True
        return {"status": "sleeping", "level": 1}

    def _wake_up(self, _: HttpRequest) -> dict[str, Any]:
        self._asleep = False
        return {"status": "awake", "tags": None}

    async def _sglang(self, request: HttpRequest, reply: ResponseWriter) -> None:
        if self._engine.sglang_api is None:
            raise RequestRejected("Not Found", status=404)
        self._engine.sglang_api.handle(request, reply, self._engine.sglang)

    async def _metrics(self, request: HttpRequest, reply: ResponseWriter) -> None:
        self._engine.scheduler.update_gauges()
        text = self._engine.metrics.text(self._engine.model)
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        reply.send(200, text.encode(), [(b"content-type", kind)])

    async def _nixl_metadata(self, request: HttpRequest, reply: ResponseWriter) -> None:
        """Send the metadata of the agent that the query names, or of rank 0."""
        agents = self._engine.agents
        if not agents:
            raise RequestRejected("this rank is aggregated and has no NIXL agent", status=404)
        agent = agents.get(unquote(request.query)) or next(iter(agents.values()))
        reply.send(200, agent.metadata())

    async def _health(self, request: HttpRequest, reply: ResponseWriter) -> None:
        reply.send(200, b"")


def malformed_request(
    status: int, message: str, headers: Mapping[str, str]
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return body and headers of the response to a request that is not valid HTTP."""
    return msgspec.json.encode(error_body(message, status)), [JSON]


def _json(handler: JsonHandler) -> Handler:
    async def handle(request: HttpRequest, reply: ResponseWriter) -> None:
        send_json(reply, handler(request))

    return handle


def _request_id(request: HttpRequest) -> str:
    return request.headers.get("x-request-id") or os.urandom(16).hex()


def _read(request: HttpRequest, type_: type[T], *, strict: bool = True) -> T:
    """Parse the body as real engines do, with Python's `json`. Raises RequestRejected.

    NaN and a byte order mark are accepted, unpaired surrogates are not. Unless `strict`, numbers
    may be texts.
    """
    try:
        value = read_value(request.body)
        msgspec.json.encode(value)  # fails for unpaired surrogates
        return msgspec.convert(value, type_, strict=strict)
    except (JsonError, UnicodeEncodeError, msgspec.ValidationError) as e:
        raise RequestRejected(str(e)) from e
