"""Endpoints that are answered from the head's view of the run, without an engine."""

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
    """Return the endpoint for a path; None if it is not one of these."""
    if path.startswith(f"{MODELS}/"):
        return _model
    return STATUS_ENDPOINTS.get(path)


def _json(value: object, status: int = 200) -> StatusResponse:
    return status, JSON, msgspec.json.encode(value)


def _live(view: RunView, request: HttpRequest) -> StatusResponse:
    return _json({"status": "live"})


def _ready(view: RunView, request: HttpRequest) -> StatusResponse:
    """Return 200 if requests are served, else 503; with several models also the state of each."""
    ready = view.ready or (view.successor is not None and view.successor.ready)
    status = "draining" if view.draining else "ready" if ready else "starting"
    models = {name: _state(view, model) for name, model in view.models.items() if name}
    content = {"status": status, **({"models": models} if models else {})}
    return _json(content, 200 if status == "ready" else 503)


def _state(view: RunView, model: ModelAvailability) -> str:
    if model.failure:
        return "lost"
    return "draining" if view.draining else "ready" if model.ready else "starting"


def _card(name: str, view: RunView, model: ModelAvailability = NOT_AVAILABLE) -> dict[str, object]:
    """Return the entry of /v1/models for one name. `root` is the full hub id, if any."""
    parent, length = model.adapters.get(name, ""), model.context_tokens
    root = next((alias for alias, target in model.aliases.items() if target == name), "")
    card: dict[str, object] = {"id": name, "object": "model", "created": int(view.started_at)}
    card |= {"owned_by": "hpc-dynamo"}
    card |= {"root": root} if root else {}
    card |= {"parent": parent} if parent else {}
    return card | ({"max_model_len": length} if length else {})


def _models(view: RunView, request: HttpRequest) -> StatusResponse:
    return _json({"object": "list", "data": list(_cards(view).values())})


def _cards(view: RunView) -> dict[str, dict[str, object]]:
    """Return the entries of /v1/models by name."""
    return {
        name: _card(name, view, model) for model in view.models.values() for name in model.names
    }


def _model(view: RunView, request: HttpRequest) -> StatusResponse:
    requested = unquote(request.path.removeprefix(f"{MODELS}/"))
    name = view.aliases.get(requested, requested)
    check_model(view.names, name, view.aliases)
    return _json(_cards(view).get(name) or _card(name, view))


def check_model(known: Collection[str], name: str | None, aliases: Iterable[str] = ()) -> None:
    """Raise ApiError for a name that no worker serves.

    Any name passes before the first worker is ready. `aliases` are listed with the known names.
    """
    if known and name is not None and name not in known:
        raise unknown_model(name, (*known, *aliases))


def unknown_model(name: str, known: Iterable[str]) -> ApiError:
    """Return the error for a model name that is not one of `known`."""
    what = f"the model {name[:200]!r} is not served; known: {', '.join(known)}"
    return ApiError(404, what, code="model_not_found", param="model")


def _workers(view: RunView, request: HttpRequest) -> StatusResponse:
    loads = {load.rank: msgspec.to_builtins(load) for load in view.loads}
    rows = [msgspec.to_builtins(w) | {"load": loads.get(w.rank)} for w in view.workers]
    for row in rows:
        del row["operations"]  # see WorkerReport.without_operations
    return _json({"object": "list", "data": rows})


def with_notice(decision: bytes, notice: str) -> bytes:
    """Return the JSON of a routing decision, with `notice` as a field if it is not empty."""
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
