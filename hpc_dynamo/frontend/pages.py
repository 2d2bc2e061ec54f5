"""What is answered from the head's view of the job, without asking an engine."""

from collections.abc import Callable
from urllib.parse import unquote

import msgspec

from hpc_dynamo.frontend.document import document
from hpc_dynamo.frontend.errors import Refused
from hpc_dynamo.http import Request
from hpc_dynamo.messages import View

JSON = b"application/json"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"
MODELS = "/v1/models"

Answer = tuple[int, bytes, bytes]  # status, content type, content
Page = Callable[[View, Request], Answer]


def page(path: str) -> Page | None:
    """Who answers for a path, if it is anybody here."""
    if path.startswith(f"{MODELS}/"):
        return _model
    return PAGES.get(path)


def _json(value: object, status: int = 200) -> Answer:
    return status, JSON, msgspec.json.encode(value)


def _live(view: View, request: Request) -> Answer:
    return _json({"status": "live"})


def _ready(view: View, request: Request) -> Answer:
    """Whether a request sent now would be served: 200 or 503."""
    if view.draining:
        return _json({"status": "draining"}, 503)
    ready = view.ready or (view.successor is not None and view.successor.ready)
    return _json({"status": "ready"}) if ready else _json({"status": "starting"}, 503)


def _card(view: View, name: str) -> dict[str, object]:
    card: dict[str, object] = {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "hpc-dynamo",
    }
    return card | ({"max_model_len": view.context_tokens} if view.context_tokens else {})


def _models(view: View, request: Request) -> Answer:
    return _json({"object": "list", "data": [_card(view, name) for name in view.models]})


def _model(view: View, request: Request) -> Answer:
    name = unquote(request.path.removeprefix(f"{MODELS}/"))
    check_model(view, name)
    return _json(_card(view, name))


def check_model(view: View, name: str) -> None:
    """Raises Refused for a name that nobody serves; before any worker is there all may be."""
    if view.models and name not in view.models:
        what = f"the model {name[:200]!r} is not served; known: {', '.join(view.models)}"
        raise Refused(404, what, code="model_not_found", param="model")


def _workers(view: View, request: Request) -> Answer:
    loads = {load.rank: msgspec.to_builtins(load) for load in view.loads}
    rows = [msgspec.to_builtins(w) | {"load": loads.get(w.rank)} for w in view.workers]
    return _json({"object": "list", "data": rows})


def _metrics(view: View, request: Request) -> Answer:
    return 200, TEXT, view.metrics.encode()


def _openapi(view: View, request: Request) -> Answer:
    return _json(document())


PAGES: dict[str, Page] = {
    "/health": _ready,
    "/live": _live,
    "/ready": _ready,
    "/metrics": _metrics,
    "/openapi.json": _openapi,
    "/v1/workers": _workers,
    MODELS: _models,
}
