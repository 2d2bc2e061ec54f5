"""The HTTP side: OpenAI's endpoints, vLLM's extras, metrics, the NIXL side channel."""

import hmac
import os
import random
import signal
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from hpc_dynamo.kv import KvAgent
from hpc_dynamo.simulator import tokenizer
from hpc_dynamo.simulator.handover import METADATA_PATH
from hpc_dynamo.simulator.metrics import Metrics
from hpc_dynamo.simulator.openai import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Refused,
    Reply,
    Request,
    TokenizeRequest,
    Usage,
    error_body,
)
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sequence import Answer, Job

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LARGEST_BODY_BYTES = 64 * 1024 * 1024
OPEN_PATHS = ("/health", "/ready", "/version")  # all others need the key
COMPLETION_MAX_TOKENS = 16  # OpenAI's default, kept by vLLM; chat goes on to the context's end


@dataclass(frozen=True)
class Failures:
    """What goes wrong on purpose."""

    after_requests: int | None = None  # the process kills itself when one more comes
    request_rate: float = 0.0  # share of requests answered with 500
    seed: int = 0


@dataclass(frozen=True)
class Service:
    """Everything that the endpoints need."""

    model: str
    max_model_len: int
    key: str
    scheduler: Scheduler
    metrics: Metrics
    agent: KvAgent | None
    failures: Failures


class Server:
    """`app` is the aiohttp application over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._seen = 0
        self._dice = random.Random(service.failures.seed)  # repeatable, nothing secret
        self.app = web.Application(
            client_max_size=LARGEST_BODY_BYTES, middlewares=[self._guard, _in_openai_form]
        )
        self.app.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.get("/metrics", self._metrics),
                web.get(METADATA_PATH, self._metadata),
                web.get("/version", self._version),
                *(web.get(path, self._health) for path in ("/health", "/ready")),
            ]
        )

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        wanted = f"Bearer {self._service.key}".encode()
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        guarded = bool(self._service.key) and request.path not in OPEN_PATHS
        if guarded and not hmac.compare_digest(given, wanted):
            return _json(error_body("Invalid or missing API key.", 401), 401)
        return await handler(request)

    async def _completions(self, http: web.Request) -> web.StreamResponse:
        request = await _body(http, CompletionRequest)
        return await self._generate(http, request, request.max_tokens or COMPLETION_MAX_TOKENS)

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        request = await _body(http, ChatRequest)
        return await self._generate(
            http, request, request.max_completion_tokens or request.max_tokens
        )

    async def _generate(
        self, http: web.Request, request: Request, max_tokens: int | None
    ) -> web.StreamResponse:
        self._fail_on_purpose()
        request.check(self._service.model)
        jobs = self._jobs(request, max_tokens)
        reply_id = http.headers.get("X-Request-Id") or uuid.uuid4().hex
        reply = Reply.to(request, reply_id, self._service.model)
        try:
            for job in jobs:
                self._service.scheduler.submit(job, 1 if job.produce else request.n)
            if request.stream:
                return await self._stream(http, request, reply, jobs)
            return await self._whole(reply, jobs)
        finally:  # a client that goes away cancels this handler
            for job in jobs:
                self._service.scheduler.abort(job)

    def _jobs(self, request: Request, max_tokens: int | None) -> list[Job]:
        prompts, transfer = request.prompts(), request.kv_transfer_params
        if transfer and len(prompts) > 1:
            raise Refused("kv_transfer_params go with one prompt only", param="prompt")
        produce = bool(transfer and transfer.do_remote_decode)
        source = transfer.source() if transfer else None
        length = self._service.max_model_len
        samplings = [request.sampling(len(p), length, max_tokens) for p in prompts]
        return [
            Job(uuid.uuid4().hex, prompt, sampling, bool(request.stream), produce, source)
            for prompt, sampling in zip(prompts, samplings, strict=True)
        ]

    async def _whole(self, reply: Reply, jobs: list[Job]) -> web.Response:
        choices = list[dict[str, Any]]()
        for job in jobs:
            while not job.done:
                job.changed.clear()
                await job.changed.wait()
            for answer in job.choices:
                _raise_error(answer)
                ended = (answer.finish, answer.stop_reason)
                choices.append(reply.choice(len(choices), answer.news(), *ended))
        return _json(reply.whole(choices, _usage(jobs), jobs[0].handover))

    async def _stream(
        self, http: web.Request, request: Request, reply: Reply, jobs: list[Job]
    ) -> web.StreamResponse:
        for job in jobs[1:]:
            job.changed = jobs[0].changed  # one wake-up for all prompts of a request
        answers = [answer for job in jobs for answer in job.choices]
        await jobs[0].changed.wait()
        for answer in answers:
            _raise_error(answer)  # before the headers are out, so that the status can tell
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        unfinished = dict(enumerate(answers))
        events = [_event(chunk) for chunk in reply.opening(len(answers))]
        while unfinished:
            await jobs[0].changed.wait()
            jobs[0].changed.clear()
            events += self._news(reply, unfinished)
            if events:
                await response.write(b"".join(events))
            events = []
        if request.stream_options and request.stream_options.include_usage:
            await response.write(_event(reply.usage_chunk(_usage(jobs))))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _news(self, reply: Reply, unfinished: dict[int, Answer]) -> list[bytes]:
        """The chunks since the last call; answers that are complete leave `unfinished`."""
        events = list[bytes]()
        for index, answer in list(unfinished.items()):
            finish, text = answer.finish, answer.news()
            if answer.error is not None:
                events.append(_event(error_body(answer.error.message, 500)))
            elif text or finish:
                events.append(_event(reply.chunk(index, text, finish, answer.stop_reason)))
            if finish:
                del unfinished[index]
        return events

    def _fail_on_purpose(self) -> None:
        self._seen += 1
        failures = self._service.failures
        if failures.after_requests is not None and self._seen > failures.after_requests:
            os.kill(os.getpid(), signal.SIGKILL)
        if failures.request_rate and self._dice.random() < failures.request_rate:
            raise Refused("failing on purpose (--fail-request-rate)", status=500)

    async def _models(self, _: web.Request) -> web.Response:
        name, length = self._service.model, self._service.max_model_len
        card = {"id": name, "object": "model", "owned_by": "hpc-dynamo", "max_model_len": length}
        return _json({"object": "list", "data": [card]})

    async def _tokenize(self, http: web.Request) -> web.Response:
        request = await _body(http, TokenizeRequest)
        if request.messages is not None:
            said = [(m.role, m.text()) for m in request.messages]
            tokens = tokenizer.render(said, generate=request.add_generation_prompt)
        else:
            tokens = tokenizer.encode(request.prompt or "")
        length = self._service.max_model_len
        return _json({"count": len(tokens), "max_model_len": length, "tokens": tokens})

    async def _detokenize(self, http: web.Request) -> web.Response:
        request = await _body(http, DetokenizeRequest)
        return _json({"prompt": tokenizer.decode(request.tokens)})

    async def _metrics(self, _: web.Request) -> web.Response:
        self._service.scheduler.measure()
        text = self._service.metrics.text(self._service.model)
        kind = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=text.encode(), headers=kind)

    async def _metadata(self, _: web.Request) -> web.Response:
        if self._service.agent is None:
            raise Refused("this rank is aggregated; it hands nothing over", status=404)
        return web.Response(body=self._service.agent.metadata())

    async def _version(self, _: web.Request) -> web.Response:
        return _json({"version": "simulator"})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()


@web.middleware
async def _in_openai_form(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as e:
        return _json(e.body, e.status)
    except web.HTTPError as e:
        return _json(error_body(e.reason, e.status), e.status)


async def _body(http: web.Request, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(await http.read(), type=type_)
    except msgspec.DecodeError as e:  # no JSON, or a field of another type
        raise Refused(str(e)) from e


def _raise_error(answer: Answer) -> None:
    if answer.error is not None:
        raise Refused(answer.error.message, status=500)


def _usage(jobs: list[Job]) -> Usage:
    answers = [answer for job in jobs for answer in job.choices]
    return Usage(
        prompt_tokens=sum(len(job.prompt) for job in jobs),
        completion_tokens=sum(len(answer.output) for answer in answers),
        cached_tokens=sum(job.choices[0].cached for job in jobs),
    )


def _json(body: Any, status: int = 200) -> web.Response:
    headers = {"Content-Type": "application/json"}
    return web.Response(body=msgspec.json.encode(body), status=status, headers=headers)


def _event(body: Any) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
