"""From a path to an answer: the table of endpoints, access, and errors in the API's form."""

import asyncio
import logging
import re
import time
from dataclasses import dataclass

from hpc_dynamo.config import Config
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.frontend import errors, pages
from hpc_dynamo.frontend.access import Gate, request_id
from hpc_dynamo.frontend.document import LOADS, NAPS, POSTS, ROUTE
from hpc_dynamo.frontend.errors import Refused
from hpc_dynamo.frontend.forward import Forwarder
from hpc_dynamo.frontend.generation import read_body
from hpc_dynamo.frontend.lanes import Lanes
from hpc_dynamo.frontend.relay import Relay
from hpc_dynamo.frontend.stats import Stats
from hpc_dynamo.http import Reply, Request
from hpc_dynamo.router import Overloaded, RemoteRouter

JSON = (b"content-type", b"application/json")

log = logging.getLogger(__name__)


@dataclass
class Bill:
    """Whose figures a request counts for, as far as that is known."""

    stats: Stats


class App:
    """The handler of one frontend process."""

    def __init__(
        self, config: Config, gate: Gate, router: RemoteRouter, lanes: Lanes,
        forwarder: Forwarder, stats: Stats,
    ) -> None:  # fmt: skip
        """`stats` are of what is of no model."""
        self._config, self._gate, self._router, self._lanes = config, gate, router, lanes
        self._forwarder, self._stats = forwarder, stats
        self._timeout_s = config.serve.request_timeout_s

    async def __call__(self, request: Request, reply: Reply) -> None:
        """Answers every request, one way or the other."""
        own_id = request_id(request.headers)
        reply.headers.append((b"x-request-id", own_id.encode()))
        began, self._stats.active = time.monotonic(), self._stats.active + 1
        how, bill = "", Bill(self._stats)
        try:
            await self._answer(request, reply, own_id, bill)
        except Refused as e:
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
            known = request.path if request.path in KNOWN else "other"
            key = f"{known} {how or reply.status}"
            bill.stats.answers[key] = bill.stats.answers.get(key, 0) + 1

    async def _answer(self, request: Request, reply: Reply, own_id: str, bill: Bill) -> None:
        path = request.path
        if path not in OPEN:
            self._gate.check(request.headers)
        page = pages.page(path)
        if page:
            self._allow(request, "GET", "HEAD")
            status, kind, content = page(self._router.view, request)
            reply.send(status, content, [(b"content-type", kind)])
        elif path == LOADS:
            self._allow(request, "GET")
            reply.send(200, await self._router.loads(), [JSON])
        elif nap := NAP.fullmatch(path):
            self._allow(request, "POST")
            said = await self._router.put(int(nap["rank"]), nap["how"] == "sleep")
            reply.send(200, said, [JSON])
        elif path in PASSED:
            self._allow(request, "POST")
            await self._pass(request, reply, own_id, bill)
        elif path == ROUTE:
            self._allow(request, "POST")
            if not await self._passed_on(request, reply, own_id):
                body, view = read_body(request.body), self._router.view
                lane = self._lanes.of(body, view)
                ask = await lane.generation.ask(request, body, view)
                decision = await self._router.explain(ask)
                reply.send(200, pages.explained(decision, lane.notice), [JSON])
        else:
            known = ", ".join(sorted(KNOWN))
            raise Refused(404, f"{path[:200]} is not served here; known: {known}")

    def _allow(self, request: Request, *methods: str) -> None:
        if request.method not in methods:
            raise Refused(405, f"{request.path} takes {methods[0]}, not {request.method}")

    async def _pass(self, request: Request, reply: Reply, own_id: str, bill: Bill) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                if await self._passed_on(request, reply, own_id):
                    return
                self._admit()
                body, view = read_body(request.body), self._router.view
                lane = self._lanes.of(body, view)
                bill.stats = lane.stats
                work = await lane.generation.work(request, body, own_id, view)
                await lane.dispatcher.run(work, Relay(reply, lane.stats))
        except TimeoutError as e:
            what = f"no whole answer within {self._timeout_s:.0f} s (serve.request_timeout_s)"
            raise Refused(504, what) from e

    async def _passed_on(self, request: Request, reply: Reply, own_id: str) -> bool:
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
            raise Refused(503, f"the job is draining: its walltime ends{after}", retry_after_s=30.0)

    def _refuse(self, request: Request, reply: Reply, error: Refused) -> str:
        """How it ended, if its status does not say."""
        log.info("%s: %d %s", request.path[:200], error.status, error.message)
        if reply.status:
            return self._break_off(request, reply, error)
        retry = [(b"retry-after", b"%d" % max(1, round(error.retry_after_s)))]
        headers = [JSON, *(retry if error.status in (429, 503) else [])]
        reply.send(error.status, errors.content(error, request.path), headers)
        return ""

    def _fail(self, request: Request, reply: Reply, error: RequestFailed) -> str:
        """The dispatcher's failures: an engine's own words go out as they came."""
        after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
        if reply.status or not error.body:
            refused = errors.of_engine(error.status, error.body, error.message, request.path)
            refused.retry_after_s = after_s
            return self._refuse(request, reply, refused)
        log.info("%s: %s", request.path, error.message)
        body = errors.engine_content(error.status, error.body, error.message, request.path)
        reply.send(error.status, body, [JSON])
        return ""

    def _break_off(self, request: Request, reply: Reply, error: Refused) -> str:
        """A stream cannot change its status any more; it says what happened, and ends."""
        reply.write(errors.event(error, request.path))
        reply.end()
        return "broken"


OPEN = frozenset({"/health", "/live", "/ready", "/openapi.json"})
PASSED = frozenset(POSTS) - {ROUTE}
KNOWN = PASSED | {ROUTE, LOADS, *NAPS} | frozenset(pages.PAGES)
NAP = re.compile(r"/v1/workers/(?P<rank>[0-9]{1,9})/(?P<how>sleep|wake)")
