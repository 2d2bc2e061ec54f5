"""Requests for paths that only the engines implement.

The engines' `/openapi.json` lists their paths; `engines.http_paths` decides which of them clients
may use. A POST to a path without parameters is routed like any generation. The other paths refer to
state in one worker's memory (`GET /v1/responses/{id}`) or are equal on all workers (`/version`).
"""

import asyncio
import logging
import re
from collections.abc import Iterable
from urllib.parse import quote

from hpc_dynamo.config import Role
from hpc_dynamo.engine_errors import append_engine_error
from hpc_dynamo.engines.http_paths import VERSION, is_inference, path_parameters
from hpc_dynamo.frontend import errors
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.http import Header, HttpClient, HttpRequest, HttpResponse, ResponseWriter
from hpc_dynamo.messages import WorkerReport, WorkerState
from hpc_dynamo.router import RunView

RESPONSES = "/v1/responses"
MAX_OWNERS = 10_000  # ids whose worker is remembered
MAX_ID_CHARACTERS = 256
# vLLM and SGLang write the id first, in streams below `response` of the first event.
RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(?P<id>resp_[A-Za-z0-9_-]+)"')
SEARCHED_BYTES = 1024

# Used for engines that publish no /openapi.json (vLLM: --disable-fastapi-docs).
DEFAULT_OPERATIONS = (
    f"GET {VERSION}",
    f"GET {RESPONSES}/{{response_id}}",
    f"POST {RESPONSES}/{{response_id}}/cancel",
)

log = logging.getLogger(__name__)


def engine_path(view: RunView, method: str, path: str) -> str:
    """Return the engines' path or path template that matches a request; empty if there is none."""
    method = "GET" if method == "HEAD" else method
    for known in _known(view):
        verb, template = known.split(" ", 1)
        if verb == method and (template == path or path_parameters(template, path)):
            return template
    if not view.operations and method == "POST" and is_inference(path):
        return path
    return ""


def engine_methods(view: RunView, path: str) -> tuple[str, ...]:
    """Return the methods that the engines accept for a path."""
    known = (operation.split(" ", 1) for operation in _known(view))
    return tuple(verb for verb, t in known if t == path or path_parameters(t, path))


def _known(view: RunView) -> tuple[str, ...]:
    return view.operations or DEFAULT_OPERATIONS


class EnginePassthrough:
    """Sends requests directly to workers, without the router, because they compute nothing.

    Remembers the worker of each id. An id that this process does not know is looked up on every
    worker.
    """

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._owners = dict[str, int]()  # rank by id, oldest first

    async def forward(
        self,
        template: str,
        request: HttpRequest,
        response: ResponseWriter,
        request_id: str,
        view: RunView,
    ) -> None:
        """Forward the first response other than 404. Raises ApiError if there is none."""
        key = "/".join(path_parameters(template, request.path))
        path = f"{request.path}?{request.query}" if request.query else request.path
        headers: list[Header] = [(b"x-request-id", request_id.encode())]
        # HEAD is answered from the response to a GET.
        method = "GET" if request.method == "HEAD" else request.method
        not_found = b""
        for worker in self._candidates(view, key):
            sent = self._client.send(method, worker.url, path, request.body, headers)
            try:
                async with sent as answer:
                    if answer.status == 404:
                        not_found = await answer.read()
                        continue
                    if answer.status < 300:
                        self._remember(key, worker.rank)
                    return await _relay(answer, worker.rank, request, response)
            except OSError as e:
                if response.status:
                    raise ApiError(502, f"worker {worker.rank} left during its response") from e
                log.warning("worker %d at %s: %s", worker.rank, worker.url, e or type(e).__name__)
        raise _no_response(not_found, request.path)

    def remember_response(self, content: bytes, rank: int) -> None:
        """Remember the worker of a new response; `content` is its start or its first event."""
        if found := RESPONSE_ID.search(content[:SEARCHED_BYTES]):
            self._remember(found["id"].decode(), rank)

    async def response_owner(self, response_id: str, view: RunView) -> int | None:
        """Return the rank that keeps a response of /v1/responses; None if it is not found.

        The known owner is asked first, the others at the same time.
        """
        if not 0 < len(response_id) <= MAX_ID_CHARACTERS:
            return None
        path = f"{RESPONSES}/{quote(response_id, safe='', errors='replace')}"
        owner = self._owners.get(response_id)
        workers = list(self._candidates(view, response_id))
        known = sum(worker.rank == owner for worker in workers)  # 0 or 1
        for some in (workers[:known], workers[known:]):
            answers = await asyncio.gather(*(self._keeps(worker, path) for worker in some))
            if found := next((w for w, keeps in zip(some, answers, strict=True) if keeps), None):
                self._remember(response_id, found.rank)
                return found.rank
        return None

    async def _keeps(self, worker: WorkerReport, path: str) -> bool:
        """Return True if a worker answers 200 for this path."""
        try:
            async with self._client.send("GET", worker.url, path) as answer:
                await answer.read()
                return answer.status == 200
        except OSError as e:
            log.warning("worker %d at %s: %s", worker.rank, worker.url, e or type(e).__name__)
            return False

    def _candidates(self, view: RunView, key: str) -> Iterable[WorkerReport]:
        """Return ready workers that answer clients, the known owner of `key` first."""
        owner = self._owners.get(key)
        ready = [w for w in view.workers if w.state is WorkerState.ready and not w.asleep]
        answering = [w for w in ready if w.role is not Role.prefill]
        return sorted(answering, key=lambda w: w.rank != owner)

    def _remember(self, key: str, rank: int) -> None:
        if 0 < len(key) <= MAX_ID_CHARACTERS:
            self._owners.pop(key, None)
            self._owners[key] = rank
            if len(self._owners) > MAX_OWNERS:
                del self._owners[next(iter(self._owners))]


async def _relay(
    answer: HttpResponse, rank: int, request: HttpRequest, response: ResponseWriter
) -> None:
    """Relay a stream as it arrives, another response whole, and an error in the client's format."""
    content_type = answer.headers.get("content-type", "application/json").encode("latin-1")
    if content_type.startswith(b"text/event-stream") and answer.status == 200:
        response.begin(200, [(b"content-type", content_type), (b"cache-control", b"no-cache")])
        await answer.relay(response)
        response.end()
        return
    content = await answer.read()
    if answer.status >= 400:
        what = append_engine_error(f"worker {rank} answered {answer.status}", content)
        content = errors.engine_error_body(answer.status, content, what, request.path)
        content_type = b"application/json"
    response.send(answer.status, content, [(b"content-type", content_type)])


def _no_response(not_found: bytes, path: str) -> ApiError:
    if not_found:
        return errors.engine_error(404, not_found, f"no worker knows {path[:200]}", path)
    return ApiError(503, "no worker is ready to answer; see /ready", retry_after_s=5.0)
