"""Request handler of a frontend process: paths, access, and errors in the client's API format."""

import asyncio
import dataclasses
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

from msgspec.structs import replace

from hpc_dynamo.config import Serve
from hpc_dynamo.dispatch import EngineRequest, StreamRecord
from hpc_dynamo.engines import Body, field_value
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.frontend import errors
from hpc_dynamo.frontend.auth import ApiKeyAuth, assign_request_id
from hpc_dynamo.frontend.cors import Cors, is_preflight
from hpc_dynamo.frontend.engine_passthrough import (
    RESPONSES,
    EnginePassthrough,
    engine_methods,
    engine_path,
)
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.forward import SuccessorForwarder
from hpc_dynamo.frontend.model_endpoints import ModelEndpoint, ModelEndpoints
from hpc_dynamo.frontend.multipart import form_fields, is_multipart
from hpc_dynamo.frontend.openapi import LOADS, POST_OPERATIONS, ROUTE, SLEEP_PATHS
from hpc_dynamo.frontend.relay import ResponseRelay
from hpc_dynamo.frontend.request_translator import read_body
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.frontend.status_endpoints import STATUS_ENDPOINTS, status_endpoint, with_notice
from hpc_dynamo.http import HttpRequest, ResponseWriter
from hpc_dynamo.json_reader import is_null
from hpc_dynamo.large_bodies import off_loop
from hpc_dynamo.router import Overloaded, RemoteRouter, RunView

JSON = (b"content-type", b"application/json")
PREVIOUS = "previous_response_id"
PUBLIC_PATHS = frozenset({"/health", "/live", "/ready", "/openapi.json"})  # need no API key
GENERATION_PATHS = frozenset(POST_OPERATIONS) - {ROUTE}
KNOWN_PATHS = GENERATION_PATHS | {ROUTE, LOADS, *SLEEP_PATHS} | frozenset(STATUS_ENDPOINTS)
SLEEP_PATH = re.compile(r"/v1/workers/(?P<rank>[0-9]{1,9})/(?P<action>sleep|wake)")
DRAINING_RETRY_S = 30.0

log = logging.getLogger(__name__)


@dataclass
class Exchange:
    """A request, its response, and how it is counted."""

    request: HttpRequest
    response: ResponseWriter
    request_id: str
    stats: FrontendStats  # counters of the process until the model is known
    path: str  # metric label
    relay: ResponseRelay | None = None  # set once there is a stream or a response

    def allow(self, *methods: str) -> None:
        """Raises ApiError for other methods."""
        if self.request.method not in methods:
            raise _wrong_method(self.request, methods)


class App:
    """Request handler of one frontend process. `stats` counts requests without a model."""

    def __init__(
        self, serve: Serve, auth: ApiKeyAuth, router: RemoteRouter, models: ModelEndpoints,
        forwarder: SuccessorForwarder, passthrough: EnginePassthrough, stats: FrontendStats,
    ) -> None:  # fmt: skip
        self._auth, self._router, self._models = auth, router, models
        self._forwarder, self._passthrough, self._stats = forwarder, passthrough, stats
        self._timeout_s = serve.request_timeout_s
        self._max_items = serve.max_items_per_request
        self._cors = Cors(serve.allowed_origins)

    async def __call__(self, request: HttpRequest, response: ResponseWriter) -> None:
        """Answer a request, also if it is invalid."""
        request = _normalized(request)
        request_id = assign_request_id(request.headers)
        response.headers.append((b"x-request-id", request_id.encode()))
        response.headers += self._cors.headers(request.headers)
        path = request.path if request.path in KNOWN_PATHS else "other"
        exchange = Exchange(request, response, request_id, self._stats, path)
        started, self._stats.active = time.monotonic(), self._stats.active + 1
        outcome = ""
        try:
            await self._answer(exchange)
        except ApiError as e:
            outcome = _send_error(exchange, e)
        except RequestFailed as e:
            outcome = _send_failure(exchange, e)
        except asyncio.CancelledError:
            outcome = "cancelled"
            self._stats.cancelled += 1
            log.info("%s: the client disconnected", request.path)
            raise
        finally:
            self._stats.active -= 1
            exchange.stats.seconds.observe(time.monotonic() - started)
            key = f"{exchange.path} {outcome or response.status}"
            exchange.stats.responses[key] = exchange.stats.responses.get(key, 0) + 1

    async def _answer(self, exchange: Exchange) -> None:
        request, response = exchange.request, exchange.response
        if self._cors.enabled and is_preflight(request):
            self._answer_preflight(request, response)
            return
        if request.path not in PUBLIC_PATHS:
            self._auth.check(request.headers)
        if endpoint := status_endpoint(request.path):
            exchange.allow("GET", "HEAD")
            status, content_type, content = endpoint(self._router.view, request)
            response.send(status, content, [(b"content-type", content_type)])
        elif request.path == LOADS:
            exchange.allow("GET", "HEAD")
            response.send(200, await self._router.loads(), [JSON])
        elif match := SLEEP_PATH.fullmatch(request.path):
            exchange.allow("POST")
            rank, asleep = int(match["rank"]), match["action"] == "sleep"
            response.send(200, await self._router.set_sleep(rank, asleep), [JSON])
        elif request.path in GENERATION_PATHS:
            exchange.allow("POST")
            await self._generate(exchange)
        elif request.path == ROUTE:
            exchange.allow("POST")
            await self._explain_route(exchange)
        else:
            await self._forward_to_engine(exchange)

    def _answer_preflight(self, request: HttpRequest, response: ResponseWriter) -> None:
        """Answer a preflight without a key: browsers send none."""
        if not self._cors.allows(request.headers):
            origin = request.headers["origin"][:200]
            raise ApiError(403, f"the origin {origin} is not one of serve.allowed_origins")
        response.send(204, b"", self._cors.preflight(request.headers))

    async def _explain_route(self, exchange: Exchange) -> None:
        request, view = exchange.request, self._router.view
        if await self._forwarded(exchange):
            return
        body = await self._read_body(request)
        model = self._models.for_body(body, view)
        routing = await model.translator.routing_request(request, body, view)
        decision = await self._router.explain(routing)
        exchange.response.send(200, with_notice(decision, model.translator.notice), [JSON])

    async def _forward_to_engine(self, exchange: Exchange) -> None:
        """Serve a path that only engines implement. Raises ApiError if they do not."""
        request, view = exchange.request, self._router.view
        template = engine_path(view, request.method, request.path)
        if not template:
            raise _unknown_path(request, view)
        exchange.path = template if view.operations else exchange.path
        if request.method == "POST" and template == request.path:
            await self._generate(exchange)
        else:
            async with asyncio.timeout(self._timeout_s):
                await self._passthrough.forward(
                    template, request, exchange.response, exchange.request_id, view
                )

    async def _generate(self, exchange: Exchange) -> None:
        """Execute a request on the workers."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if await self._forwarded(exchange):
                    return
                self._check_draining()
                model, request = await self._engine_request(exchange)
                exchange.stats = model.stats
                record = StreamRecord() if model.migrator.records(request) else None
                is_stored = exchange.request.path == RESPONSES  # by the worker, in its memory
                on_start = self._passthrough.remember_response if is_stored else None
                exchange.relay = ResponseRelay(
                    exchange.response, model.stats, record, on_start, request.choices
                )
                await model.migrator.run(request, exchange.relay)
        except TimeoutError as e:
            what = f"no complete response within {self._timeout_s:.0f} s"
            raise ApiError(504, f"{what} (serve.request_timeout_s)") from e

    async def _engine_request(self, exchange: Exchange) -> tuple[ModelEndpoint, EngineRequest]:
        """Return the model that a request is for, and the request to its engine."""
        request, view = exchange.request, self._router.view
        if request.path not in GENERATION_PATHS and is_multipart(request):
            fields = form_fields(request)
            model = self._models.for_name(dict(fields).get("model"), view)
            return model, model.translator.multipart_request(request, fields, exchange.request_id)
        body = await self._read_body(request)
        model = self._models.for_body(body, view)
        translated = await model.translator.engine_request(request, body, exchange.request_id, view)
        if request.path == RESPONSES and not is_null(body, PREVIOUS):
            translated = await self._pin_to_owner(translated, body, view)
        return model, translated

    async def _read_body(self, request: HttpRequest) -> Body:
        content = request.body
        return await off_loop(len(content), partial(read_body, content, self._max_items))

    async def _pin_to_owner(
        self, request: EngineRequest, body: Body, view: RunView
    ) -> EngineRequest:
        """Pin a request that continues a response to the worker that keeps that response."""
        response_id = field_value(body[PREVIOUS])
        if not isinstance(response_id, str):
            return request
        rank = await self._passthrough.response_owner(response_id, view)
        if rank is None:
            return request
        hints = replace(request.routing.hints, workers=(rank,))
        routing = replace(request.routing, hints=hints, may_disaggregate=False)
        return dataclasses.replace(request, routing=routing)

    async def _forwarded(self, exchange: Exchange) -> bool:
        """Forward a request to the next job of the run; return True if it has answered."""
        view = self._router.view
        if view.draining or not (view.successor and view.successor.ready):
            return False
        return await self._forwarder.forward(
            view.successor.url, exchange.request, exchange.response, exchange.request_id
        )

    def _check_draining(self) -> None:
        """Raises ApiError near the walltime limit, with the URL of the next job if it is known."""
        view = self._router.view
        if view.draining:
            after = f"; the run continues at {view.successor.url}" if view.successor else ""
            what = f"the job is draining: its walltime ends{after}"
            raise ApiError(503, what, retry_after_s=DRAINING_RETRY_S)


def _send_error(exchange: Exchange, error: ApiError) -> str:
    """Send an error; return the outcome for the metrics if the status does not show it."""
    request, response = exchange.request, exchange.response
    kind = {"kind": error.status}
    log.info("%s: %d %s", request.path[:200], error.status, error.message, extra=kind)
    if response.status:
        if exchange.relay and not exchange.relay.ends_with_error:
            return "broken"  # the connection is closed in the middle of the response
        # The status of a stream cannot change any more: the error is its last event.
        before = exchange.relay.last_piece if exchange.relay else b""
        response.write(errors.error_event(error, request.path, before))
        response.end()
        return "broken"
    headers = [JSON]
    if error.status in (429, 503):
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    if error.allowed_methods:
        headers.append((b"allow", ", ".join(error.allowed_methods).encode()))
    response.send(error.status, errors.error_body(error, request.path), headers)
    return ""


def _send_failure(exchange: Exchange, failure: RequestFailed) -> str:
    """Send an error of the dispatcher, with the engine's own body if there is one."""
    request, response = exchange.request, exchange.response
    status, body, message = failure.status, failure.body, failure.message
    if response.status or not body:
        error = errors.engine_error(status, body, message, request.path)
        error.retry_after_s = failure.retry_after_s if isinstance(failure, Overloaded) else 0.0
        return _send_error(exchange, error)
    log.info("%s: %s", request.path, message)
    response.send(status, errors.engine_error_body(status, body, message, request.path), [JSON])
    return ""


def _normalized(request: HttpRequest) -> HttpRequest:
    """Read `/v1/models/` and `/v1//models`, as some clients join URLs, as `/v1/models`."""
    path = re.sub("/{2,}", "/", request.path).rstrip("/") or "/"
    return request if path == request.path else replace(request, path=path)


def _wrong_method(request: HttpRequest, allowed: Sequence[str]) -> ApiError:
    what = f"{request.path} takes {allowed[0]}, not {request.method}"
    return ApiError(405, what, allowed_methods=allowed)


def _unknown_path(request: HttpRequest, view: RunView) -> ApiError:
    path = request.path
    if allowed := engine_methods(view, path):
        return _wrong_method(request, allowed)
    paths = sorted(KNOWN_PATHS.union(o.split(" ", 1)[1] for o in view.operations))
    near = get_close_matches(path, paths, n=3)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return ApiError(404, f"{path[:200]} is not served here; {meant}known: {', '.join(paths)}")
