"""The OpenAPI 3.1 document of the endpoint, published at /openapi.json.

Bodies are described as far as the frontend itself looks at them; everything else that the
engine knows passes through, hence `additionalProperties`.
"""

from functools import cache
from importlib.metadata import version
from typing import Any

Schema = dict[str, Any]

ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
        }
    },
}
ANY: Schema = {"type": "object", "additionalProperties": True}
STREAM: Schema = {"stream": {"type": "boolean"}, "model": {"type": "string"}}
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
MESSAGE: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "user", "assistant"]},
        "content": {"type": "string"},
    },
}
LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": 64}


def _body(required: list[str], **properties: Schema) -> Schema:
    schema = ANY | {"required": required, "properties": STREAM | properties}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _answers(*codes: int) -> Schema:
    failed = {"application/json": {"schema": ERROR}}
    found: Schema = {str(code): {"description": "error", "content": failed} for code in codes}
    fine = {"application/json": {"schema": ANY}, "text/event-stream": {}}
    return found | {"200": {"description": "the engine's answer", "content": fine}}


ROUTE = "/v1/route"
LOADS = "/v1/loads"
NAPS = {
    "/v1/workers/{rank}/sleep": "a worker to sleep, once it has nothing to do (engine.sleep=true)",
    "/v1/workers/{rank}/wake": "a worker that sleeps is woken, and given requests again",
}
REFUSALS = (400, 401, 404, 405, 408, 413, 429, 431, 500, 502, 503, 504)
MESSAGES: Schema = {"type": "array", "items": MESSAGE, "minItems": 1}
POSTS: dict[str, tuple[str, Schema]] = {
    "/v1/chat/completions": (
        "an answer to a conversation",
        _body(["messages"], messages=MESSAGES, max_tokens=LIMIT),
    ),
    "/v1/completions": (
        "a text that goes on from a prompt",
        _body(["prompt"], prompt=PROMPT, max_tokens=LIMIT),
    ),
    "/v1/embeddings": ("vectors, where the engine has them", _body(["input"], input=PROMPT)),
    "/v1/responses": ("OpenAI's responses, where the engine has them", _body(["input"])),
    "/v1/messages": (
        "Anthropic's messages, where the engine has them",
        _body(["messages", "max_tokens"], messages=MESSAGES, max_tokens=LIMIT),
    ),
    "/v1/messages/count_tokens": (
        "length of Anthropic's messages, where the engine has them",
        _body(["messages"], messages=MESSAGES),
    ),
    ROUTE: ("where this body would be sent, and why; nothing is sent", _body([])),
    "/tokenize": ("token ids of a text", _body([])),
    "/detokenize": ("text of token ids", _body(["tokens"])),
}
GETS = {
    "/v1/models": "models that are served",
    "/v1/workers": "who serves: rank, role, node, state, load",
    LOADS: "what this endpoint has on each worker, by URL: for other heads before the same",
    "/metrics": "figures of the whole job for Prometheus",
    "/live": "this process answers",
    "/ready": "requests are served: 200, else 503",
    "/health": "the same as /ready",
    "/openapi.json": "this document",
}


@cache
def document() -> Schema:
    """The document. The same for every job: it names no host and no model."""
    paths: Schema = {
        path: {"post": {"summary": text, "requestBody": body, "responses": _answers(*REFUSALS)}}
        for path, (text, body) in POSTS.items()
    }
    rank = {"name": "rank", "in": "path", "required": True, "schema": {"type": "integer"}}
    for path, text in NAPS.items():
        refusals = _answers(400, 401, 404, 405, 409, 413, 431, 502, 503, 504)
        post: Schema = {"summary": text, "parameters": [rank], "responses": refusals}
        paths[path] = {"post": post}
    for path, text in GETS.items():
        shown: Schema = {"200": {"description": text}, "401": {"description": "no key"}}
        if path in ("/ready", "/health"):
            shown["503"] = {"description": "not yet, or no more"}
        paths[path] = {"get": {"summary": text, "responses": shown}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "hpc-dynamo", "version": version("hpc-dynamo")},
        "security": [{"key": []}],
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "paths": paths,
    }
