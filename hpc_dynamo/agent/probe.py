"""HTTP queries to an engine: does it serve requests, and which models and paths."""

import msgspec
from msgspec.structs import replace

from hpc_dynamo.engines import Body
from hpc_dynamo.engines.http_paths import forwardable
from hpc_dynamo.http import MAX_REPORT_BYTES, HttpClient

MAX_VERSION_CHARS = 100


class EngineModels(msgspec.Struct, frozen=True):
    """Models of an engine, as it reports them: fields of WorkerReport. Empty ones are unknown."""

    models: tuple[str, ...] = ()
    adapters: dict[str, str] = {}  # base model of each adapter
    context_tokens: int = 0  # longest prompt and answer together
    operations: tuple[str, ...] = ()  # for clients, see engines.http_paths
    version: str = ""  # version of the engine


NO_MODELS = EngineModels()


async def serves_token(http: HttpClient, url: str, model: str, fields: Body) -> bool:
    """Return True if the engine generates a token, or an embedding if it generates no text.

    `fields` are added to the request, see engines.probe_fields.
    """
    text = {"model": model, "prompt": "Hello", "max_tokens": 1, **fields}
    try:
        status, content = await _request(http, "POST", url, "/v1/completions", text)
        if 400 <= status < 500:
            vector = {"model": model, "input": "Hello"}
            status, content = await _request(http, "POST", url, "/v1/embeddings", vector)
    except OSError:
        return False
    return status == 200 and _has_output(content)


async def query_models(http: HttpClient, url: str) -> EngineModels:
    """Return what the engine reports about its models and paths, which may be nothing."""
    try:
        status, content = await _request(http, "GET", url, "/v1/models")
        found = _models(content) if status == 200 else NO_MODELS
        status, content = await _request(http, "GET", url, "/openapi.json")
        if status == 200:
            found = replace(found, operations=_operations(content))
        status, content = await _request(http, "GET", url, "/version")
    except OSError:  # the exit of an engine is handled elsewhere
        return NO_MODELS
    return replace(found, version=_version(content)) if status == 200 else found


async def not_serving_reason(http: HttpClient, url: str, model: str, fields: Body) -> str:
    """Return why an external engine does not serve `model`; empty if it does.

    Without a model name it only has to list its models.
    """
    try:
        async with http.send("GET", url, "/v1/models") as answer:
            await answer.read(MAX_REPORT_BYTES)
    except OSError as e:
        return f"cannot be reached: {e.strerror or e}"
    if answer.status in (401, 403):
        return f"refuses the API key with {answer.status} (route.api_key_file)"
    if answer.status != 200:
        return f"answers /v1/models with {answer.status}"
    if model and not await serves_token(http, url, model, fields):
        return f"serves no token of {model!r} (model.name)"
    return ""


async def is_alive(http: HttpClient, url: str) -> bool:
    """Return True if the engine answers /health without an error; some engines have no /health."""
    try:
        async with http.send("GET", url, "/health") as answer:
            await answer.read(MAX_REPORT_BYTES)
    except OSError:
        return False
    return answer.status < 500


def _has_output(content: bytes) -> bool:
    try:
        found = msgspec.json.decode(content, type=_Generated)
    except (msgspec.DecodeError, RecursionError):
        return False
    return bool(found.choices or found.data)


class _Generated(msgspec.Struct):
    """Outputs in the body of a completion or of embeddings."""

    choices: list[msgspec.Raw] = []
    data: list[msgspec.Raw] = []


async def _request(
    http: HttpClient, method: str, url: str, path: str, body: object = None
) -> tuple[int, bytes]:
    """Return status and body of the answer. Raises OSError."""
    async with http.send(method, url, path, msgspec.json.encode(body)) as answer:
        return answer.status, await answer.read(MAX_REPORT_BYTES)


class _Model(msgspec.Struct):
    """An entry of /v1/models."""

    id: str
    parent: str | None = None  # base model of a LoRA adapter
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    """Body of /v1/models."""

    data: list[_Model] = []


class _Document(msgspec.Struct):
    """OpenAPI document: its methods by path."""

    paths: dict[str, dict[str, msgspec.Raw]] = {}


def _operations(content: bytes) -> tuple[str, ...]:
    try:
        paths = msgspec.json.decode(content, type=_Document).paths
    except (msgspec.DecodeError, RecursionError):
        return ()
    return forwardable((method, path) for path, methods in paths.items() for method in methods)


class _Version(msgspec.Struct):
    """Body of /version of vLLM and TensorRT-LLM."""

    version: str = ""


def _version(content: bytes) -> str:
    try:
        return msgspec.json.decode(content, type=_Version).version[:MAX_VERSION_CHARS]
    except (msgspec.DecodeError, RecursionError):
        return ""


def _models(content: bytes) -> EngineModels:
    """Read an answer of /v1/models; empty if the engine has another format."""
    try:
        models = msgspec.json.decode(content, type=_Models).data
    except msgspec.DecodeError:
        return NO_MODELS
    longest = max((m.max_model_len or 0 for m in models), default=0)
    adapters = {m.id: m.parent for m in models if m.parent}
    return EngineModels(tuple(m.id for m in models), adapters, longest)
