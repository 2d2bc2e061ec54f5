"""OpenAPI 3.1 document of the endpoint, published at /openapi.json.

Request schemas describe only the fields that the frontend reads. All other fields are passed to the
engine, hence `additionalProperties`.
"""

from functools import cache
from importlib.metadata import version
from typing import Any

Schema = dict[str, Any]

OBJECT: Schema = {"type": "object", "additionalProperties": True}
TEXT: Schema = {"type": "string"}
MAX_TOKENS: Schema = {"type": "integer", "minimum": 1, "maximum": 64}
PROMPT: Schema = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 100},
            "minItems": 1,
        },
    ]
}
MESSAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": TEXT},
    },
}
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {"message": TEXT, "type": TEXT},
        }
    },
}
ERRORS = {
    400: "The request is invalid; the message names the field.",
    401: "The API key is missing or wrong.",
    404: "The path, the model or the worker does not exist.",
    405: "The path does not accept this method; see the Allow header.",
    408: "The request did not arrive completely in time.",
    409: "The worker cannot change its state now.",
    413: "The body is larger than serve.max_body_mb.",
    429: "The queue (serve.max_queued_requests) or the buffer is full; see Retry-After.",
    431: "The headers are too large.",
    500: "Internal error, or an error of the engine.",
    502: "The engine sent an invalid response.",
    503: "No worker is ready, or the job is draining.",
    504: "No complete response within serve.request_timeout_s.",
}


def _body(required: list[str], **properties: Schema) -> Schema:
    fields = {"stream": {"type": "boolean"}, "model": TEXT} | properties
    schema = OBJECT | {"required": required, "properties": fields}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


ROUTE = "/v1/route"
LOADS = "/v1/loads"
POST_OPERATIONS: dict[str, tuple[str, str, Schema]] = {
    "/v1/chat/completions": (
        "Create a chat completion",
        "Generates the next message of a conversation. Streams events if `stream` is true.",
        _body(["messages"], messages=MESSAGES, max_tokens=MAX_TOKENS),
    ),
    "/v1/completions": (
        "Create a completion",
        "Continues one or several prompts, given as texts or token ids.",
        _body(["prompt"], prompt=PROMPT, max_tokens=MAX_TOKENS),
    ),
    "/v1/embeddings": (
        "Create embeddings",
        "Returns one vector per input. Needs an engine that serves an embedding model.",
        _body(["input"], input=PROMPT),
    ),
    "/v1/responses": (
        "Create a response",
        "OpenAI's Responses API. Needs an engine that implements it.",
        _body(["input"]),
    ),
    "/v1/messages": (
        "Create a message",
        "Anthropic's Messages API. Needs an engine that implements it.",
        _body(["messages", "max_tokens"], messages=MESSAGES, max_tokens=MAX_TOKENS),
    ),
    "/v1/messages/count_tokens": (
        "Count the tokens of messages",
        "Anthropic's token count. Needs an engine that implements it.",
        _body(["messages"], messages=MESSAGES),
    ),
    ROUTE: (
        "Explain a routing decision",
        "Returns the worker that the router would select for this body, with the cost of each "
        "candidate. The request is not executed.",
        _body([]),
    ),
    "/tokenize": (
        "Tokenize a text or a conversation",
        "Returns the token ids that the engine computes.",
        _body([]),
    ),
    "/detokenize": (
        "Convert token ids to text",
        "Returns the text of the token ids in `tokens`.",
        _body(["tokens"]),
    ),
}
SLEEP_PATHS = {
    "/v1/workers/{rank}/sleep": (
        "Put a worker to sleep",
        "Waits until the worker is idle, then frees its GPU memory. Needs engine.sleep_mode=true.",
    ),
    "/v1/workers/{rank}/wake": (
        "Wake a sleeping worker",
        "Restores the worker's GPU memory; the router then sends requests to it again.",
    ),
}
GET_OPERATIONS = {
    "/v1/models": (
        "List the served models",
        "Lists model names, LoRA adapters and context lengths.",
    ),
    "/v1/workers": ("List the workers", "Lists rank, role, node, state and load of each worker."),
    LOADS: (
        "Report the load that this endpoint puts on each worker",
        "Returns loads by worker URL. Other heads that share the same workers read them.",
    ),
    "/metrics": ("Export metrics", "Metrics of the whole job in Prometheus text format."),
    "/live": ("Check liveness", "Returns 200 while the frontend process runs."),
    "/ready": ("Check readiness", "Returns 200 if requests are served, else 503."),
    "/health": ("Check readiness", "Same as /ready."),
    "/openapi.json": ("Get this document", "Returns the OpenAPI document of the endpoint."),
}


def _errors(*statuses: int) -> Schema:
    content = {"application/json": {"schema": ERROR}}
    return {str(s): {"description": ERRORS[s], "content": content} for s in statuses}


def _engine_responses(*errors: int) -> Schema:
    content = {"application/json": {"schema": OBJECT}, "text/event-stream": {}}
    return _errors(*errors) | {"200": {"description": "The response.", "content": content}}


def _post(summary: str, description: str, body: Schema) -> Schema:
    responses = _engine_responses(400, 401, 404, 405, 408, 413, 429, 431, 500, 502, 503, 504)
    described = {"summary": summary, "description": description}
    return {"post": described | {"requestBody": body, "responses": responses}}


def _sleep(summary: str, description: str) -> Schema:
    rank = {"name": "rank", "in": "path", "required": True, "schema": {"type": "integer"}}
    rank |= {"description": "Rank of the worker, as listed by /v1/workers."}
    responses = _engine_responses(400, 401, 404, 405, 409, 413, 431, 502, 503, 504)
    described = {"summary": summary, "description": description}
    return {"post": described | {"parameters": [rank], "responses": responses}}


def _get(path: str, summary: str, description: str) -> Schema:
    responses = {"200": {"description": description}, "401": {"description": ERRORS[401]}}
    if path in ("/ready", "/health"):
        responses["503"] = {"description": "The job is starting, draining or has lost its workers."}
    return {"get": {"summary": summary, "description": description, "responses": responses}}


@cache
def openapi_document() -> Schema:
    """Return the document. It is the same for every job: it names no host and no model."""
    paths = {path: _post(*operation) for path, operation in POST_OPERATIONS.items()}
    paths |= {path: _sleep(*operation) for path, operation in SLEEP_PATHS.items()}
    paths |= {path: _get(path, *operation) for path, operation in GET_OPERATIONS.items()}
    about = "OpenAI-compatible endpoint of a hpc-dynamo run. Engine paths are forwarded as well."
    title = {"title": "hpc-dynamo", "description": about, "version": version("hpc-dynamo")}
    bearer = {"type": "http", "scheme": "bearer", "description": "API key of the run."}
    return {
        "openapi": "3.1.0",
        "info": title,
        "security": [{"key": []}],
        "components": {"securitySchemes": {"key": bearer}},
        "paths": paths,
    }
