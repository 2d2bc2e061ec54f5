"""What is answered from the head's view of the job, without asking an engine."""

from collections.abc import Callable, Collection, Iterable
from urllib.parse import unquote

import msgspec

from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.openapi import openapi_document
from hpc_dynamo.http import HttpRequest
from hpc_dynamo.router import NOT_AVAILABLE, ModelAvailability, RunView

JSON = b"application/json"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"
MODELS = "/v1/models"

StatusResponse = tuple[int, bytes, bytes]  # status, content type, content
StatusEndpoint = Callable[[RunView, HttpRequest], StatusResponse]


def status_endpoint(path: str) -> StatusEndpoint | None:
    """Who answers for a path, if it is anybody here."""
    if path.startswith(f"{MODELS}/"):
        return _model
    return STATUS_ENDPOINTS.get(path)


def _json(value: object, status: int = 200) -> StatusResponse:
    return status, JSON, msgspec.json.encode(value)


def _live(view: RunView, request: HttpRequest) -> StatusResponse:
    return _json({"status": "live"})


def _ready(view: RunView, request: HttpRequest) -> StatusResponse:
    """Whether a request sent now would be served: 200 or 503; of several models also of each."""
    ready = view.ready or (view.successor is not None and view.successor.ready)
    status = "draining" if view.draining else "ready" if ready else "starting"
    several = {m: _state(view, offer) for m, offer in view.models.items() if m}
    said = {"status": status, **({"models": several} if several else {})}
    return _json(said, 200 if status == "ready" else 503)


def _state(view: RunView, offer: ModelAvailability) -> str:
    if offer.failure:
        return "lost"
    return "draining" if view.draining else "ready" if offer.ready else "starting"


def _card(name: str, view: RunView, offer: ModelAvailability = NOT_AVAILABLE) -> dict[str, object]:
    """Return the entry of /v1/models for one name. `root` is the full hub id, if any."""
    parent, length = offer.adapters.get(name, ""), offer.context_tokens
    root = next((alias for alias, of in offer.aliases.items() if of == name), "")
    card: dict[str, object] = {"id": name, "object": "model", "created": int(view.started_at)}
    card |= {"owned_by": "hpc-dynamo"}
    card |= {"root": root} if root else {}
    card |= {"parent": parent} if parent else {}
    return card | ({"max_model_len": length} if length else {})


def _models(view: RunView, request: HttpRequest) -> StatusResponse:
    return _json({"object": "list", "data": list(_cards(view).values())})


def _cards(view: RunView) -> dict[str, dict[str, object]]:
    """Of all models that are served now, by name."""
    return {
        name: _card(name, view, offer) for offer in view.models.values() for name in offer.names
    }


def _model(view: RunView, request: HttpRequest) -> StatusResponse:
    asked = unquote(request.path.removeprefix(f"{MODELS}/"))
    name = view.aliases.get(asked, asked)
    check_model(view.names, name, view.aliases)
    return _json(_cards(view).get(name) or _card(name, view))


def check_model(known: Collection[str], name: str | None, aliases: Iterable[str] = ()) -> None:
    """Raise Refused for a name that no worker serves. Before the first worker is ready, any name
    passes. `aliases` are listed with the known names."""
    if known and name is not None and name not in known:
        raise unknown_model(name, (*known, *aliases))


def unknown_model(name: str, known: Iterable[str]) -> ApiError:
    what = f"the model {name[:200]!r} is not served; known: {', '.join(known)}"
    return ApiError(404, what, code="model_not_found", param="model")


def _workers(view: RunView, request: HttpRequest) -> StatusResponse:
    loads = {load.rank: msgspec.to_builtins(load) for load in view.loads}
    rows = [msgspec.to_builtins(w) | {"load": loads.get(w.rank)} for w in view.workers]
    for row in rows:
        del row["operations"]  # see WorkerReport.brief
    return _json({"object": "list", "data": rows})


def with_notice(decision: bytes, notice: str) -> bytes:
    """Return the JSON of a routing decision, with `notice` as one more field if there is one."""
    if not notice:
        return decision
    fields = msgspec.json.decode(decision, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, "notice": notice})


def _metrics(view: RunView, request: HttpRequest) -> StatusResponse:
    return 200, TEXT, view.metrics.encode()


def _openapi(view: RunView, request: HttpRequest) -> StatusResponse:
    return _json(openapi_document())


STATUS_ENDPOINTS: dict[str, StatusEndpoint] = {
    "/health": _ready,
    "/live": _live,
    "/ready": _ready,
    "/metrics": _metrics,
    "/openapi.json": _openapi,
    "/v1/workers": _workers,
    MODELS: _models,
}
