"""Text of an engine's error, in any of the known forms.

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

MAX_MESSAGE_CHARS = 2000  # characters of a message that are kept

_HTML = re.compile(r"\s*<(?:!doctype|html|head|body|\?xml)\b", re.IGNORECASE)
_UNSEEN = re.compile(r"<(script|style|title)\b.*?</\1>", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


class EngineErrorText(msgspec.Struct, frozen=True):
    """Engine's error for a failed request. `message` is empty if there is none."""

    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


def parse_engine_error(body: bytes) -> EngineErrorText:
    """Return the message of an error's body, with the other fields of OpenAI's form if given."""
    try:
        found = _of_value(read_value(body)) if body.strip() else EngineErrorText()
    except JsonError:
        found = EngineErrorText(_plain(body.decode(errors="replace")))
    return msgspec.structs.replace(found, message=_shortened(found.message))


def append_engine_error(what: str, body: bytes) -> str:
    """Return `what`, followed by the engine's own message if there is one."""
    message = parse_engine_error(body).message
    return f"{what}: {message}" if message else what


def _of_value(value: Any) -> EngineErrorText:
    if isinstance(value, list):  # some gateways put the object into a list
        return next((text for text in map(_of_value, value[:1]) if text.message), EngineErrorText())
    if isinstance(value, str):
        return EngineErrorText(value.strip())
    if not isinstance(value, dict):
        return EngineErrorText()
    if isinstance(error := value.get("error"), dict):
        return _of_fields(error)
    if isinstance(error, str) and error and not _text(value, "message"):
        return _of_fields(value | {"message": error})
    if "detail" in value and not _text(value, "message"):
        return _of_detail(value["detail"])
    return _of_fields(value)


def _of_fields(fields: dict[str, Any]) -> EngineErrorText:
    code, kind = fields.get("code"), _text(fields, "type")
    return EngineErrorText(
        message=_text(fields, "message") or _of_detail(fields.get("detail")).message,
        type=None if kind == "error" else kind or None,
        param=_text(fields, "param") or None,
        code=code if isinstance(code, str | int) and not isinstance(code, bool) else None,
    )


def _of_detail(detail: Any) -> EngineErrorText:
    """Return FastAPI's `detail`: a text, an object, or a list of pydantic's errors."""
    if isinstance(detail, dict):
        return _of_fields(detail | {"message": _text(detail, "message") or _complaint(detail)})
    if isinstance(detail, list):
        complaints = [c if isinstance(c, str) else _complaint(c) for c in detail]
        return EngineErrorText(
            "; ".join(filter(None, complaints)), param=_where(detail[:1]) or None
        )
    return EngineErrorText(detail.strip()) if isinstance(detail, str) else EngineErrorText()


def _complaint(complaint: Any) -> str:
    if not isinstance(complaint, dict):
        return ""
    what, where = _text(complaint, "msg"), _where([complaint])
    return f"{where}: {what}" if what and where else what


def _where(complaints: list[Any]) -> str:
    """Return the field of the first complaint, without `body`, which all begin with."""
    loc = complaints[0].get("loc") if complaints and isinstance(complaints[0], dict) else None
    parts = [str(part) for part in loc] if isinstance(loc, list) else []
    return ".".join(parts[1:] if parts[:1] == ["body"] else parts)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value.strip() if isinstance(value, str) else ""


def _plain(text: str) -> str:
    """Return plain text, or the visible text of an HTML page (else its title)."""
    if not _HTML.match(text):
        return text.strip()
    title = _TITLE.search(text)
    seen = " ".join(unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text))).split())
    return seen or (unescape(title[1]).strip() if title else "")


def _shortened(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]}…"
