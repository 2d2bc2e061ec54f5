"""Parse the error body of an engine, in any of the known forms.

{"error": {"message": …, "type": …, "param": …, "code": …}}   OpenAI; vLLM
{"object": "error", "message": …, "type": …, "code": 400}     SGLang, TensorRT-LLM
{"type": "error", "error": {"type": …, "message": …}}         Anthropic
{"detail": "…"}, {"detail": [{"loc": […], "msg": …}, …]}      FastAPI
{"error": "…"}, {"message": "…"}, a JSON string, plain text, an HTML page of a proxy
"""

import re
from html import unescape
from typing import Any

import msgspec

from hpc_dynamo.json_reader import JsonError, read_value

MAX_MESSAGE_CHARS = 2000  # longer messages are truncated
# The time to search an HTML page may grow with its square.
MAX_PAGE_CHARS = 1 << 14

# FastAPI's text of a validation error ends with the place in the server's source code.
_SOURCE_PLACE = re.compile(r'\n\s*File "[^"\n]*", line \d+, in \w+\n.*', re.DOTALL)
# SGLang 0.5.23, entrypoints/openai/serving_base.py: an exception of Python follows.
_UNHANDLED = "internal server error: "
# Starlette's text, and SGLang's on /v1/messages.
_NO_REASON = ("", "internal server error")
_HTML = re.compile(r"\s*<(?:!doctype|html|head|body|\?xml)\b", re.IGNORECASE)
_INVISIBLE = re.compile(r"<(script|style|title)\b.*?</\1>", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


class EngineErrorText(msgspec.Struct, frozen=True):
    """Error of an engine for a failed request, in OpenAI's terms. `message` may be empty."""

    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


def parse_engine_error(body: bytes) -> EngineErrorText:
    """Return the message of an error body, and the other fields of OpenAI's form if present."""
    try:
        error = _from_value(read_value(body)) if body.strip() else EngineErrorText()
    except JsonError:
        error = EngineErrorText(_plain_text(body.decode(errors="replace")))
    message = _SOURCE_PLACE.sub("", error.message)
    return msgspec.structs.replace(error, message=_truncated(message))


def has_reason(error: EngineErrorText) -> bool:
    """Return True if the message has more than the fact that there was an error."""
    return error.message.lower() not in _NO_REASON


def append_engine_error(what: str, body: bytes) -> str:
    """Return `what`, followed by the engine's own message if there is one."""
    error = parse_engine_error(body)
    what = f"{what}: {error.message}" if error.message else what
    return what if has_reason(error) else f"{what}; the log of the engine may have the reason"


def unhandled_exception(body: bytes) -> str:
    """Return the text of an exception that SGLang's API server raised for a request; empty for
    other errors. The cause is a request that SGLang cannot read, or the server itself."""
    message = parse_engine_error(body).message
    found = message.lower().startswith(_UNHANDLED)
    return message[len(_UNHANDLED) :] if found else ""


def _from_value(value: Any) -> EngineErrorText:
    if isinstance(value, list):  # some gateways put the object into a list
        return next(
            (text for text in map(_from_value, value[:1]) if text.message), EngineErrorText()
        )
    if isinstance(value, str):
        return EngineErrorText(value.strip())
    if not isinstance(value, dict):
        return EngineErrorText()
    if isinstance(error := value.get("error"), dict):
        return _from_fields(error)
    if isinstance(error, str) and error and not _text(value, "message"):
        return _from_fields(value | {"message": error})
    if "detail" in value and not _text(value, "message"):
        return _from_detail(value["detail"])
    return _from_fields(value)


def _from_fields(fields: dict[str, Any]) -> EngineErrorText:
    code, kind = fields.get("code"), _text(fields, "type")
    return EngineErrorText(
        message=_text(fields, "message") or _from_detail(fields.get("detail")).message,
        type=None if kind == "error" else kind or None,
        param=_text(fields, "param") or None,
        code=code if isinstance(code, str | int) and not isinstance(code, bool) else None,
    )


def _from_detail(detail: Any) -> EngineErrorText:
    """Parse FastAPI's `detail`: a text, an object, or a list of pydantic's errors."""
    if isinstance(detail, dict):
        return _from_fields(
            detail | {"message": _text(detail, "message") or _validation_message(detail)}
        )
    if isinstance(detail, list):
        messages = [c if isinstance(c, str) else _validation_message(c) for c in detail]
        return EngineErrorText("; ".join(filter(None, messages)), param=_field(detail[:1]) or None)
    return EngineErrorText(detail.strip()) if isinstance(detail, str) else EngineErrorText()


def _validation_message(error: Any) -> str:
    if not isinstance(error, dict):
        return ""
    message, field = _text(error, "msg"), _field([error])
    return f"{field}: {message}" if message and field else message


def _field(errors: list[Any]) -> str:
    """Return the field of the first error, without the prefix `body`."""
    loc = errors[0].get("loc") if errors and isinstance(errors[0], dict) else None
    parts = [str(part) for part in loc] if isinstance(loc, list) else []
    return ".".join(parts[1:] if parts[:1] == ["body"] else parts)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value.strip() if isinstance(value, str) else ""


def _plain_text(text: str) -> str:
    """Return plain text, or the visible text of an HTML page (else its title)."""
    if not _HTML.match(text):
        return text.strip()
    text = text[:MAX_PAGE_CHARS]
    title = _TITLE.search(text)
    visible = " ".join(unescape(_TAG.sub(" ", _INVISIBLE.sub(" ", text))).split())
    return visible or (unescape(title[1]).strip() if title else "")


def _truncated(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]}…"
