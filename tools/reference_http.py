"""Reference page of the HTTP API, from the OpenAPI document that every endpoint publishes."""

from collections.abc import Iterator
from typing import Any

from hpc_dynamo.frontend.openapi import ERRORS, openapi_document

PAGE = "http-api.md"
INTRODUCTION = """
# HTTP API

Every serving run publishes this as OpenAPI 3.1 at `/openapi.json`. All paths except `/live`,
`/ready`, `/health` and `/openapi.json` require the run's key: `Authorization: Bearer KEY` or
`x-api-key: KEY`. Fields that are not listed are passed to the engine unchanged. See
[the HTTP endpoint](../guides/http-endpoint.md) for names of models, errors and limits.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    for path, methods in openapi_document()["paths"].items():
        for method, operation in methods.items():
            parts.append("\n".join(_operation(path, method, operation)))
    rows = [f"| {status} | {text} |" for status, text in ERRORS.items()]
    parts.append("\n".join(["## Error statuses\n", "| status | meaning |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def _operation(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    summary = operation["summary"]
    yield f"## `{method.upper()} {path}`\n"
    yield f"{summary}. {operation['description']}\n"
    body = operation.get("requestBody")
    if body:
        schema = body["content"]["application/json"]["schema"]
        required = schema.get("required", [])
        yield "| field | type | required |\n|---|---|---|"
        for name in dict.fromkeys([*required, *schema["properties"]]):
            described = _type(schema["properties"].get(name, {}))
            yield f"| `{name}` | {described} | {'yes' if name in required else 'no'} |"
        yield ""
    codes = ", ".join(f"`{code}`" for code in sorted(operation["responses"]))
    yield f"Status codes: {codes}.\n"


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    return str(schema.get("type", "any"))
