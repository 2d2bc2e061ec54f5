"""The endpoints: OpenAI's, vLLM's extras, metrics, the NIXL side channel."""

import asyncio
import hmac
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from hpc_dynamo.http import HttpRequest, ResponseWriter
from hpc_dynamo.json_reader import JsonError, read_value
from hpc_dynamo.kv.agent import KvAgent
from hpc_dynamo.simulator import tokenizer
from hpc_dynamo.simulator.api_error import Refused, error_body
from hpc_dynamo.simulator.chat import ChatRequest, TokenizeRequest
from hpc_dynamo.simulator.embeddings import EmbeddingRequest
from hpc_dynamo.simulator.generation import JSON, Generation, jobs_of
from hpc_dynamo.simulator.kv_handoff import METADATA_PATH
from hpc_dynamo.simulator.metrics import Metrics
from hpc_dynamo.simulator.openai import CompletionRequest, DetokenizeRequest, check_model
from hpc_dynamo.simulator.records import Records
from hpc_dynamo.simulator.records import Request as Asked
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.scores import RerankRequest, ScoreRequest
from hpc_dynamo.simulator.sglang_bootstrap import Meeting
from hpc_dynamo.simulator.transfer import TransferParams

T = TypeVar("T")
Endpoint = Callable[[HttpRequest, ResponseWriter], Awaitable[None]]

OPEN_PATHS = ("/health", "/ready", "/version", "/openapi.json")  # all others need the key


@dataclass(frozen=True)
class Failures:
    """What goes wrong with requests on purpose; for answers under way see Limits."""

    after_requests: int | None = None  # the process kills itself when one more comes
    request_rate: float = 0.0  # share of requests answered with 500
    seed: int = 0
    text: bytes = b""  # the process kills itself when it receives a body with this text


@dataclass(frozen=True)
class Service:
    """Everything that the endpoints need."""

    model: str
    max_model_len: int
    scheduler: Scheduler
    metrics: Metrics
    agent: KvAgent | None
    failures: Failures
    tell_cached: bool = False  # prefix hits, in `usage.prompt_tokens_details`
    tell_request_id: bool = False  # X-Request-Id, in the answer's headers
    trtllm: bool = False  # hand-overs are told in TensorRT-LLM's words
    meeting: Meeting | None = None  # of a rank that speaks SGLang's dialect
    adapters: Mapping[str, str] = field(default_factory=dict)  # paths by name
    prefixed: bool = False  # requests name an adapter after its model, as SGLang's
    pooling: bool = False  # vectors are all that it gives
    naps: bool = False  # it can be put to sleep

    @property
    def called(self) -> dict[str | None, str]:
        """Adapters by what requests say."""
        before = f"{self.model}:" if self.prefixed else ""
        return {f"{before}{name}": name for name in self.adapters}


class Endpoints:
    """`handle` answers one request. Those that come before `open` wait for it."""

    def __init__(self, key: str) -> None:
        self._wanted = f"Bearer {key}".encode() if key else b""
        self._opened = asyncio.Event()
        self._service: Service
        self._seen, self._asleep = 0, False
        self._routes: dict[str, dict[str, Endpoint]] = {
            "/v1/completions": {"POST": self._completions},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/embeddings": {"POST": self._embeddings},
            "/v1/models": {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/reset_prefix_cache": {"POST": self._reset},
            "/sleep": {"POST": self._sleep},
            "/wake_up": {"POST": self._wake},
            "/is_sleeping": {"GET": self._is_sleeping},
            "/metrics": {"GET": self._metrics},
            METADATA_PATH: {"GET": self._metadata},
            "/score": {"POST": self._score},
            "/v1/score": {"POST": self._score},
            "/rerank": {"POST": self._rerank},
            "/v1/rerank": {"POST": self._rerank},
            "/v2/rerank": {"POST": self._rerank},
            "/version": {"GET": self._version},
            "/openapi.json": {"GET": self._openapi},
            "/server_info": {"GET": self._server_info},
            "/health": {"GET": self._health},
            "/ready": {"GET": self._health},
        }

    def open(self, service: Service) -> None:
        self._service = service
        self._dice = random.Random(service.failures.seed)  # repeatable, nothing secret
        self._opened.set()

    async def handle(self, request: HttpRequest, reply: ResponseWriter) -> None:
        await self._opened.wait()
        if self._service.tell_request_id:
            name = request.headers.setdefault("x-request-id", os.urandom(16).hex())
            reply.headers.append((b"x-request-id", name.encode("latin-1")))
        try:
            self._guard(request)
            await self._route(request)(request, reply)
        except Refused as e:
            _send(reply, e.body, e.status)

    def _guard(self, request: HttpRequest) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        guarded = bool(self._wanted) and request.path not in OPEN_PATHS
        if guarded and not hmac.compare_digest(given, self._wanted):
            raise Refused("Invalid or missing API key.", status=401)

    def _route(self, request: HttpRequest) -> Endpoint:
        methods = self._routes.get(request.path)
        if methods is None:
            raise Refused("Not Found", status=404)
        found = methods.get("GET" if request.method == "HEAD" else request.method)
        if found is None:
            raise Refused("Method Not Allowed", status=405)
        return found

    async def _completions(self, request: HttpRequest, reply: ResponseWriter) -> None:
        await self._generate(request, reply, _read(request, CompletionRequest))

    async def _chat(self, request: HttpRequest, reply: ResponseWriter) -> None:
        await self._generate(request, reply, _read(request, ChatRequest))

    async def _generate(self, request: HttpRequest, reply: ResponseWriter, asked: Asked) -> None:
        self._fail_on_purpose(request)
        service = self._service
        if self._asleep:  # vLLM would let it wait for ever
            raise Refused("this rank sleeps", status=500)
        if service.pooling:
            raise Refused("Not Found", status=404)
        request_id = request.headers.get("x-request-id") or os.urandom(16).hex()
        try:
            if service.trtllm:
                asked.as_trtllm()
            asked.check(service.model, *map(str, service.called))
            adapter = service.called.get(asked.model, "")
            told = {"cached": service.tell_cached, "trtllm": service.trtllm}
            name = str(asked.model) if adapter else service.model
            records = Records(asked, request_id, name, **told)
            limits = service.max_model_len, service.meeting
            jobs = jobs_of(asked, request_id, *limits, adapter)
        except Refused:
            if not service.trtllm:
                self._decline(asked.kv_transfer_params)
            raise
        if service.meeting and service.meeting.hangs(asked):
            await asyncio.Event().wait()
        await Generation(reply, records, jobs).run(service.scheduler, asked.choices)

    def _decline(self, transfer: TransferParams | None) -> None:
        """The prefill rank need not keep blocks for a request that was refused here."""
        source = transfer.source() if transfer else None
        if source:
            self._service.scheduler.decline(source)

    def _fail_on_purpose(self, request: HttpRequest) -> None:
        self._seen += 1
        failures = self._service.failures
        late = failures.after_requests is not None and self._seen > failures.after_requests
        if late or (failures.text and failures.text in request.body):
            os.kill(os.getpid(), signal.SIGKILL)
        if failures.request_rate and self._dice.random() < failures.request_rate:
            raise Refused("failing on purpose (--fail-request-rate)", status=500)

    async def _embeddings(self, request: HttpRequest, reply: ResponseWriter) -> None:
        self._fail_on_purpose(request)
        asked, service = _read(request, EmbeddingRequest), self._service
        check_model(asked.model, service.model)
        name = request.headers.get("x-request-id") or os.urandom(16).hex()
        _send(reply, asked.body(name, service.model, service.max_model_len))

    async def _score(self, request: HttpRequest, reply: ResponseWriter) -> None:
        await self._compare(request, reply, ScoreRequest)

    async def _rerank(self, request: HttpRequest, reply: ResponseWriter) -> None:
        await self._compare(request, reply, RerankRequest)

    async def _compare(
        self, request: HttpRequest, reply: ResponseWriter, type_: type[ScoreRequest | RerankRequest]
    ) -> None:
        self._fail_on_purpose(request)
        asked, service = _read(request, type_), self._service
        check_model(asked.model, service.model)
        name = request.headers.get("x-request-id") or os.urandom(16).hex()
        _send(reply, asked.body(name, service.model, service.max_model_len))

    async def _openapi(self, request: HttpRequest, reply: ResponseWriter) -> None:
        paths: dict[str, dict[str, Any]] = {
            p: {method.lower(): {} for method in row} for p, row in self._routes.items()
        }
        info = {"title": "simulator", "version": "simulator"}
        _send(reply, {"openapi": "3.1.0", "info": info, "paths": paths})

    async def _models(self, request: HttpRequest, reply: ResponseWriter) -> None:
        name, length = self._service.model, self._service.max_model_len
        card = {"object": "model", "created": 0, "owned_by": "hpc-dynamo"}
        cards = [{"id": name, **card, "parent": None, "max_model_len": length}]
        for adapter, path in self._service.adapters.items():
            cards.append({"id": adapter, **card, "root": path, "parent": name})
        _send(reply, {"object": "list", "data": cards})

    async def _tokenize(self, request: HttpRequest, reply: ResponseWriter) -> None:
        tokens, length = _read(request, TokenizeRequest).tokens(), self._service.max_model_len
        _send(reply, {"count": len(tokens), "max_model_len": length, "tokens": tokens})

    async def _detokenize(self, request: HttpRequest, reply: ResponseWriter) -> None:
        tokens = _read(request, DetokenizeRequest).tokens
        _send(reply, {"prompt": tokenizer.decode(tokens)})

    async def _reset(self, request: HttpRequest, reply: ResponseWriter) -> None:
        _send(reply, {"success": self._service.scheduler.reset_cache()})

    async def _sleep(self, request: HttpRequest, reply: ResponseWriter) -> None:
        """Without its cache. Refused while it computes, which vLLM would end."""
        if not self._service.naps:
            raise Refused("Not Found", status=404)
        if not self._service.scheduler.reset_cache():
            raise Refused("this rank is busy", status=500)
        self._asleep = True
        _send(reply, {"status": "sleeping", "level": 1})

    async def _wake(self, request: HttpRequest, reply: ResponseWriter) -> None:
        self._asleep = False
        _send(reply, {"status": "awake", "tags": None})

    async def _is_sleeping(self, request: HttpRequest, reply: ResponseWriter) -> None:
        _send(reply, {"is_sleeping": self._asleep})

    async def _metrics(self, request: HttpRequest, reply: ResponseWriter) -> None:
        self._service.scheduler.measure()
        text = self._service.metrics.text(self._service.model)
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        reply.send(200, text.encode(), [(b"content-type", kind)])

    async def _metadata(self, request: HttpRequest, reply: ResponseWriter) -> None:
        if self._service.agent is None:
            raise Refused("this rank is aggregated; it hands nothing over", status=404)
        reply.send(200, self._service.agent.metadata())

    async def _version(self, request: HttpRequest, reply: ResponseWriter) -> None:
        _send(reply, {"version": "simulator"})

    async def _server_info(self, request: HttpRequest, reply: ResponseWriter) -> None:
        """SGLang's, of which others read where to meet a prefill rank."""
        meeting = self._service.meeting
        if meeting is None:
            raise Refused("Not Found", status=404)
        info = {"disaggregation_mode": meeting.role, "version": "simulator"}
        _send(reply, info | {"disaggregation_bootstrap_port": meeting.port})

    async def _health(self, request: HttpRequest, reply: ResponseWriter) -> None:
        reply.send(200, b"")


def refusal(
    status: int, message: str, got: Mapping[str, str]
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The answer to what the HTTP server could not read."""
    return msgspec.json.encode(error_body(message, status)), [JSON]


def _read(request: HttpRequest, type_: type[T]) -> T:
    """Parse the body as real engines do: with Python's `json`, which accepts NaN and a byte order
    mark, and without half surrogate pairs. Raises Refused."""
    try:
        value = read_value(request.body)
        msgspec.json.encode(value)  # refuses half surrogate pairs
        return msgspec.convert(value, type_)
    except (JsonError, UnicodeEncodeError, msgspec.ValidationError) as e:
        raise Refused(str(e)) from e


def _send(reply: ResponseWriter, body: Any, status: int = 200) -> None:
    reply.send(status, msgspec.json.encode(body), [JSON])
