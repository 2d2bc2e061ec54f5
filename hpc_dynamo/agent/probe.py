"""Asks a young engine whether it serves, and what."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from hpc_dynamo.engines import Body
from hpc_dynamo.engines.http_paths import forwardable
from hpc_dynamo.http import HttpClient


@dataclass(frozen=True)
class EngineModels:
    """What an engine says of its models, at /v1/models."""

    models: tuple[str, ...] = ()
    adapters: Mapping[str, str] = field(default_factory=dict)  # of them, and whose they are
    context_tokens: int = 0  # longest prompt and answer together; 0: it does not say
    operations: tuple[
        str, ...
    ] = ()  # which clients may use, see engines.http_paths; empty: not known


NO_MODELS = EngineModels()


async def serves_token(http: HttpClient, url: str, model: str, fields: Body) -> bool:
    """Whether the engine has served a token now, or a vector where it makes no texts; it may not
    even listen yet.

    `fields` go into the request, see engines.probing.
    """
    text = {"model": model, "prompt": "Hello", "max_tokens": 1, **fields}
    try:
        status, _ = await _ask(http, "POST", url, "/v1/completions", text)
        if 400 <= status < 500:
            vector = {"model": model, "input": "Hello"}
            status, _ = await _ask(http, "POST", url, "/v1/embeddings", vector)
    except OSError:
        return False
    return status == 200


async def query_models(http: HttpClient, url: str) -> EngineModels:
    """Return what the engine reports about its models and paths, which may be nothing."""
    try:
        status, content = await _ask(http, "GET", url, "/v1/models")
        found = _served(content) if status == 200 else NO_MODELS
        status, content = await _ask(http, "GET", url, "/openapi.json")
    except OSError:  # it died a moment later, which its keeper tells
        return NO_MODELS
    return replace(found, operations=_operations(content)) if status == 200 else found


async def not_serving_reason(http: HttpClient, url: str, model: str, fields: Body) -> str:
    """What keeps an engine, which we have not started, from serving; empty: it serves.

    Where no name of its model is known, it is enough that it tells which it has.
    """
    try:
        async with http.send("GET", url, "/v1/models") as answer:
            await answer.read()
    except OSError as e:
        return f"cannot be reached: {e.strerror or e}"
    if answer.status in (401, 403):
        return f"refuses our key with {answer.status} (route.api_key_file)"
    if answer.status != 200:
        return f"answers /v1/models with {answer.status}"
    if model and not await serves_token(http, url, model, fields):
        return f"serves no token of {model!r} (model.name)"
    return ""


async def is_alive(http: HttpClient, url: str) -> bool:
    """Whether the engine is there and does not call itself broken; some have no /health."""
    try:
        async with http.send("GET", url, "/health") as answer:
            await answer.read()
    except OSError:
        return False
    return answer.status < 500


async def _ask(
    http: HttpClient, method: str, url: str, path: str, body: object = None
) -> tuple[int, bytes]:
    """Status and content of an answer. Raises OSError."""
    async with http.send(method, url, path, msgspec.json.encode(body)) as answer:
        return answer.status, await answer.read()


class _Model(msgspec.Struct):
    id: str
    parent: str | None = None  # a LoRA adapter has one
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Document(msgspec.Struct):
    """An OpenAPI document, as far as it is read: methods by path."""

    paths: dict[str, dict[str, msgspec.Raw]] = {}


def _operations(content: bytes) -> tuple[str, ...]:
    try:
        paths = msgspec.json.decode(content, type=_Document).paths
    except (msgspec.DecodeError, RecursionError):
        return ()
    return forwardable((method, path) for path, methods in paths.items() for method in methods)


def _served(content: bytes) -> EngineModels:
    """From an answer of /v1/models; engines that have none are taken as they are."""
    try:
        models = msgspec.json.decode(content, type=_Models).data
    except msgspec.DecodeError:
        return NO_MODELS
    longest = max((m.max_model_len or 0 for m in models), default=0)
    adapters = {m.id: m.parent for m in models if m.parent}
    return EngineModels(tuple(m.id for m in models), adapters, longest)
