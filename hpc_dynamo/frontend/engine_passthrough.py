"""Requests for paths that only the engines have.

The engines' `/openapi.json` lists their paths, `engines.paths` decides which of them clients may
use. A POST to a plain path is routed like any generation. The other paths refer to state in one
worker's memory, `GET /v1/responses/{id}`, or are the same on all workers, `/version`.
"""

import logging
from collections.abc import Iterable

from hpc_dynamo.config import Role
from hpc_dynamo.engines.paths import VERSION, is_inference, path_parameters
from hpc_dynamo.frontend import errors
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.http import Header, HttpClient, HttpRequest, HttpResponse, ResponseWriter
from hpc_dynamo.messages import WorkerReport, WorkerState
from hpc_dynamo.router import RunView

RESPONSES = "/v1/responses"
MAX_OWNERS = 10_000  # ids whose worker is known

# Used for engines that publish no /openapi.json (vLLM: --disable-fastapi-docs).
DEFAULT_OPERATIONS = (
    f"GET {VERSION}",
    f"GET {RESPONSES}/{{response_id}}",
    f"POST {RESPONSES}/{{response_id}}/cancel",
)

log = logging.getLogger(__name__)


def engine_path(view: RunView, method: str, path: str) -> str:
    """Return the path, or the template of a path, that the engines offer for a request; else an
    empty text."""
    method = "GET" if method == "HEAD" else method
    for known in _known(view):
        verb, template = known.split(" ", 1)
        if verb == method and (template == path or path_parameters(template, path)):
            return template
    if not view.operations and method == "POST" and is_inference(path):
        return path
    return ""


def engine_methods(view: RunView, path: str) -> tuple[str, ...]:
    """Return the methods that the engines offer for a path."""
    known = (operation.split(" ", 1) for operation in _known(view))
    return tuple(verb for verb, t in known if t == path or path_parameters(t, path))


def _known(view: RunView) -> tuple[str, ...]:
    return view.operations or DEFAULT_OPERATIONS


class EnginePassthrough:
    """Sends requests to workers directly, without the router: such requests compute nothing.

    Remembers which worker has answered for an id. Each frontend process has its own memory; an
    unknown id is looked up on every worker.
    """

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._owners = dict[str, int]()  # rank by id, oldest first

    async def forward(
        self, template: str, request: HttpRequest, reply: ResponseWriter, own_id: str, view: RunView
    ) -> None:
        """Forward the first answer other than 404. Raises Refused if there is none."""
        key = "/".join(path_parameters(template, request.path))
        path = f"{request.path}?{request.query}" if request.query else request.path
        headers: list[Header] = [(b"x-request-id", own_id.encode())]
        # An answer to HEAD has no body for the client; it is made from the answer to a GET.
        method = "GET" if request.method == "HEAD" else request.method
        unknown = b""
        for worker in self._in_order(view, key):
            sent = self._client.send(method, worker.url, path, request.body, headers)
            try:
                async with sent as answer:
                    if answer.status == 404:
                        unknown = await answer.read()
                        continue
                    self._remember(key, worker.rank)
                    return await _pass_back(answer, worker.rank, request, reply)
            except OSError as e:
                if reply.status:
                    raise ApiError(502, f"worker {worker.rank} left during its answer") from e
                log.warning("worker %d at %s: %s", worker.rank, worker.url, e or type(e).__name__)
        raise _nobody(unknown, request.path)

    async def response_owner(self, response_id: str, view: RunView) -> int | None:
        """Return the rank that keeps a response of /v1/responses; None if it is not found."""
        for worker in self._in_order(view, response_id):
            path = f"{RESPONSES}/{response_id}"
            try:
                async with self._client.send("GET", worker.url, path) as answer:
                    await answer.read()
                    if answer.status == 200:
                        self._remember(response_id, worker.rank)
                        return worker.rank
            except OSError as e:
                log.warning("worker %d at %s: %s", worker.rank, worker.url, e or type(e).__name__)
        return None

    def _in_order(self, view: RunView, key: str) -> Iterable[WorkerReport]:
        """Yield ready workers that answer clients, the known owner of `key` first."""
        owner = self._owners.get(key)
        ready = [w for w in view.workers if w.state is WorkerState.ready and not w.asleep]
        answering = [w for w in ready if w.role is not Role.prefill]
        return sorted(answering, key=lambda w: w.rank != owner)

    def _remember(self, key: str, rank: int) -> None:
        if key:
            self._owners.pop(key, None)
            self._owners[key] = rank
            if len(self._owners) > MAX_OWNERS:
                del self._owners[next(iter(self._owners))]


async def _pass_back(
    answer: HttpResponse, rank: int, request: HttpRequest, reply: ResponseWriter
) -> None:
    kind = answer.headers.get("content-type", "application/json").encode("latin-1")
    if kind.startswith(b"text/event-stream") and answer.status == 200:
        reply.begin(200, [(b"content-type", kind), (b"cache-control", b"no-cache")])
        await answer.relay(reply)
        reply.end()
        return
    content = await answer.read()
    if answer.status >= 400:
        what = f"worker {rank} answered {answer.status}"
        content = errors.engine_error_body(answer.status, content, what, request.path)
        kind = b"application/json"
    reply.send(answer.status, content, [(b"content-type", kind)])


def _nobody(unknown: bytes, path: str) -> ApiError:
    if unknown:
        return errors.engine_error(404, unknown, f"no worker knows {path[:200]}", path)
    return ApiError(503, "no worker is ready to answer; see /ready", retry_after_s=5.0)
