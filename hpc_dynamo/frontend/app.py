"""From a path to an answer: the table of endpoints, access, and errors in the API's form."""

import asyncio
import dataclasses
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from msgspec.structs import replace

from hpc_dynamo.config import Config
from hpc_dynamo.dispatch import EngineRequest
from hpc_dynamo.engines import Body
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.frontend import errors, status_endpoints
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
from hpc_dynamo.http import HttpRequest, ResponseWriter
from hpc_dynamo.json_reader import is_null, read_value
from hpc_dynamo.router import Overloaded, RemoteRouter, RunView

JSON = (b"content-type", b"application/json")

log = logging.getLogger(__name__)


@dataclass
class RequestAccounting:
    """Counters that a request belongs to, and its path, as far as they are known."""

    stats: FrontendStats
    path: str


class App:
    """The handler of one frontend process."""

    def __init__(
        self, config: Config, gate: ApiKeyAuth, router: RemoteRouter, lanes: ModelEndpoints,
        forwarder: SuccessorForwarder, calls: EnginePassthrough, stats: FrontendStats,
    ) -> None:  # fmt: skip
        """`stats` are of what is of no model."""
        self._config, self._gate, self._router, self._lanes = config, gate, router, lanes
        self._forwarder, self._calls, self._stats = forwarder, calls, stats
        self._timeout_s = config.serve.request_timeout_s
        self._cors = Cors(config.serve.allowed_origins)

    async def __call__(self, given: HttpRequest, reply: ResponseWriter) -> None:
        """Answers every request, one way or the other."""
        request = _normal(given)
        own_id = assign_request_id(request.headers)
        reply.headers.append((b"x-request-id", own_id.encode()))
        reply.headers += self._cors.headers(request.headers)
        began, self._stats.active = time.monotonic(), self._stats.active + 1
        how, bill = (
            "",
            RequestAccounting(
                self._stats, request.path if request.path in KNOWN_PATHS else "other"
            ),
        )
        try:
            await self._answer(request, reply, own_id, bill)
        except ApiError as e:
            how = self._refuse(request, reply, e)
        except RequestFailed as e:
            how = self._fail(request, reply, e)
        except asyncio.CancelledError:
            how = "cancelled"
            self._stats.cancelled += 1
            log.info("%s: the client went away", request.path)
            raise
        finally:
            self._stats.active -= 1
            bill.stats.seconds.observe(time.monotonic() - began)
            key = f"{bill.path} {how or reply.status}"
            bill.stats.responses[key] = bill.stats.responses.get(key, 0) + 1

    async def _answer(
        self, request: HttpRequest, reply: ResponseWriter, own_id: str, bill: RequestAccounting
    ) -> None:
        path = request.path
        if self._cors.enabled and is_preflight(request):
            self._preflight(request, reply)
            return
        if path not in PUBLIC_PATHS:
            self._gate.check(request.headers)
        page = status_endpoints.status_endpoint(path)
        if page:
            self._allow(request, "GET", "HEAD")
            status, kind, content = page(self._router.view, request)
            reply.send(status, content, [(b"content-type", kind)])
        elif path == LOADS:
            self._allow(request, "GET", "HEAD")
            reply.send(200, await self._router.loads(), [JSON])
        elif nap := SLEEP_PATH.fullmatch(path):
            self._allow(request, "POST")
            said = await self._router.set_sleep(int(nap["rank"]), nap["how"] == "sleep")
            reply.send(200, said, [JSON])
        elif path in GENERATION_PATHS:
            self._allow(request, "POST")
            await self._pass(request, reply, own_id, bill)
        elif path == ROUTE:
            self._allow(request, "POST")
            if not await self._passed_on(request, reply, own_id):
                body, view = read_body(request.body), self._router.view
                lane = self._lanes.for_body(body, view)
                decision = await self._router.explain(
                    await lane.translator.routing_request(request, body, view)
                )
                reply.send(200, status_endpoints.with_notice(decision, lane.notice), [JSON])
        else:
            await self._engines_own(request, reply, own_id, bill)

    async def _engines_own(
        self, request: HttpRequest, reply: ResponseWriter, own_id: str, bill: RequestAccounting
    ) -> None:
        """Serve a path that only the engines have. Raises Refused if they do not have it."""
        view, path = self._router.view, request.path
        template = engine_path(view, request.method, path)
        if not template:
            raise self._unknown(request)
        bill.path = template if view.operations else bill.path
        if request.method == "POST" and template == path:
            await self._pass(request, reply, own_id, bill)
        else:
            async with asyncio.timeout(self._timeout_s):
                await self._calls.forward(template, request, reply, own_id, view)

    def _unknown(self, request: HttpRequest) -> ApiError:
        view, path = self._router.view, request.path
        if allowed := engine_methods(view, path):
            return _wrong_method(request, allowed)
        paths = sorted(KNOWN_PATHS.union(o.split(" ", 1)[1] for o in view.operations))
        near = get_close_matches(path, paths, n=3)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        return ApiError(404, f"{path[:200]} is not served here; {meant}known: {', '.join(paths)}")

    def _preflight(self, request: HttpRequest, reply: ResponseWriter) -> None:
        """Answer a preflight without a key: browsers send none."""
        if not self._cors.allows(request.headers):
            origin = request.headers["origin"][:200]
            raise ApiError(403, f"the origin {origin} is not one of serve.allowed_origins")
        reply.send(204, b"", self._cors.preflight(request.headers))

    def _allow(self, request: HttpRequest, *allowed: str) -> None:
        if request.method not in allowed:
            raise _wrong_method(request, allowed)

    async def _pass(
        self, request: HttpRequest, reply: ResponseWriter, own_id: str, bill: RequestAccounting
    ) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                if await self._passed_on(request, reply, own_id):
                    return
                self._admit()
                lane, work = await self._work(request, own_id)
                bill.stats = lane.stats
                await lane.dispatcher.run(work, ResponseRelay(reply, lane.stats))
        except TimeoutError as e:
            what = f"no whole answer within {self._timeout_s:.0f} s (serve.request_timeout_s)"
            raise ApiError(504, what) from e

    async def _work(self, request: HttpRequest, own_id: str) -> tuple[ModelEndpoint, EngineRequest]:
        """Return the model that a request is for, and its work. Raises Refused."""
        view = self._router.view
        if request.path not in GENERATION_PATHS and is_multipart(request):
            lane = self._lanes.for_name(form_fields(request.body).get("model"), view)
            return lane, lane.translator.multipart_request(request, own_id)
        body = read_body(request.body)
        lane = self._lanes.for_body(body, view)
        work = await lane.translator.engine_request(request, body, own_id, view)
        if request.path == RESPONSES and not is_null(body, PREVIOUS):
            work = await self._with_owner(work, body, view)
        return lane, work

    async def _with_owner(self, work: EngineRequest, body: Body, view: RunView) -> EngineRequest:
        """Pin a request that continues a response to the worker that keeps that response."""
        name = read_value(bytes(body[PREVIOUS]))
        rank = await self._calls.response_owner(name, view) if isinstance(name, str) else None
        if rank is None:
            return work
        wish = replace(work.routing.hints, workers=(rank,))
        return dataclasses.replace(
            work, routing=replace(work.routing, hints=wish, may_disaggregate=False)
        )

    async def _passed_on(self, request: HttpRequest, reply: ResponseWriter, own_id: str) -> bool:
        """Whether the job that takes over has answered."""
        view = self._router.view
        if view.draining or not (view.successor and view.successor.ready):
            return False
        return await self._forwarder.forward(view.successor.url, request, reply, own_id)

    def _admit(self) -> None:
        """Raises Refused at the end of the job, which says where the run goes on."""
        view = self._router.view
        if view.draining:
            after = f"; it goes on at {view.successor.url}" if view.successor else ""
            raise ApiError(
                503, f"the job is draining: its walltime ends{after}", retry_after_s=30.0
            )

    def _refuse(self, request: HttpRequest, reply: ResponseWriter, error: ApiError) -> str:
        """How it ended, if its status does not say."""
        log.info("%s: %d %s", request.path[:200], error.status, error.message)
        if reply.status:
            return self._break_off(request, reply, error)
        retry = [(b"retry-after", b"%d" % max(1, round(error.retry_after_s)))]
        headers = [JSON, *(retry if error.status in (429, 503) else [])]
        headers += (
            [(b"allow", ", ".join(error.allowed_methods).encode())] if error.allowed_methods else []
        )
        reply.send(error.status, errors.error_body(error, request.path), headers)
        return ""

    def _fail(self, request: HttpRequest, reply: ResponseWriter, error: RequestFailed) -> str:
        """The dispatcher's failures: an engine's own words go out as they came."""
        after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
        if reply.status or not error.body:
            refused = errors.engine_error(error.status, error.body, error.message, request.path)
            refused.retry_after_s = after_s
            return self._refuse(request, reply, refused)
        log.info("%s: %s", request.path, error.message)
        body = errors.engine_error_body(error.status, error.body, error.message, request.path)
        reply.send(error.status, body, [JSON])
        return ""

    def _break_off(self, request: HttpRequest, reply: ResponseWriter, error: ApiError) -> str:
        """A stream cannot change its status any more; it says what happened, and ends."""
        reply.write(errors.error_event(error, request.path))
        reply.end()
        return "broken"


def _normal(request: HttpRequest) -> HttpRequest:
    """Read `/v1/models/` and `/v1//models`, as some clients join URLs, as `/v1/models`."""
    path = SLASHES.sub("/", request.path)
    path = path.rstrip("/") or "/"
    return request if path == request.path else replace(request, path=path)


def _wrong_method(request: HttpRequest, allowed: Sequence[str]) -> ApiError:
    what = f"{request.path} takes {allowed[0]}, not {request.method}"
    return ApiError(405, what, allowed_methods=allowed)


SLASHES = re.compile("/{2,}")
PREVIOUS = "previous_response_id"
PUBLIC_PATHS = frozenset({"/health", "/live", "/ready", "/openapi.json"})
GENERATION_PATHS = frozenset(POST_OPERATIONS) - {ROUTE}
KNOWN_PATHS = (
    GENERATION_PATHS | {ROUTE, LOADS, *SLEEP_PATHS} | frozenset(status_endpoints.STATUS_ENDPOINTS)
)
SLEEP_PATH = re.compile(r"/v1/workers/(?P<rank>[0-9]{1,9})/(?P<how>sleep|wake)")
