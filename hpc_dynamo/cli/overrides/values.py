"""Convert the text of a value to the type of its field.

A text field gets its text unchanged. A free engine option gets the text for its command line, JSON
too. Only `true`, `false`, `null`, mappings such as `{a: 1}` that are not JSON, and numbers that
print as they were written are converted: adapters render those as flags, JSON and the same number.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import msgspec

from hpc_dynamo.cli.overrides.field_lookup import EngineOption, JsonValue, fields_of
from hpc_dynamo.cli.overrides.yaml_text import parse
from hpc_dynamo.config import REMOVED_FORECASTS, Config
from hpc_dynamo.config.sbatch_options import gpu_request
from hpc_dynamo.errors import ConfigError, quoted_override

NULLS = ("null", "none", "None")  # unset a field that is not a text; for a text only `null` does
TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL"), None),
}
WHOLE = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
LONGEST = 40  # digits of a whole number
# A key of a mapping in Hydra's form, `{a:1}`. YAML needs a space after the colon.
KEY = re.compile(r"([{,]\s*[A-Za-z_][\w.-]*):(?=\S)")

# One element of a list: in quotes, or up to the next comma outside of quotes and brackets.
ELEMENT = re.compile(
    r"""\s*(?:'(?P<single>(?:[^'\\]|\\.)*)'|"(?P<double>(?:[^"\\]|\\.)*)"
    |(?P<bare>(?:\[[^\[\]]*\]|\{[^{}]*\}|\([^()]*\)|'[^']*'|"[^"]*"|[^,])*))\s*(?:,|$)""",
    re.DOTALL | re.VERBOSE,
)


def optional(of: Any) -> tuple[Any, bool]:
    """Return the type without None, and whether None was part of it."""
    if get_origin(of) is not UnionType:
        return of, False
    rest = [each for each in get_args(of) if each is not NoneType]
    return rest[0], len(rest) < len(get_args(of))


def from_text(text: str, of: Any, name: str) -> Any:
    """Return the value of field `name`, of type `of`, for this text. Raises ConfigError."""
    of, may_be_unset = optional(of)
    if may_be_unset and text in (NULLS[:1] if of is str else NULLS):
        return None
    if of is str:
        return text
    if of is EngineOption:
        return engine_option(text)
    if of is JsonValue:
        return json_value(text)
    if get_origin(of) is tuple:
        return elements(text)
    try:
        return _scalar(text.strip(), of)
    except ValueError:
        raise wrong(text, of, name) from None


def _scalar(text: str, of: Any) -> Any:
    """Return a scalar of type `of`. Raises ValueError."""
    if of is bool:
        if text.lower() not in TRUE + FALSE:
            raise ValueError
        return text.lower() in TRUE
    if of is int:
        if not WHOLE.fullmatch(text) or len(text) > LONGEST:
            raise ValueError
        return int(text)
    if of is float:
        return _finite(float(text))
    return str(of(text))


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError
    return number


def wrong(value: object, of: Any, name: str) -> ConfigError:
    """Return the error for a value that is not of the field's type."""
    of, may_be_unset = optional(of)
    if isinstance(of, type) and is_dataclass(of):
        hint = f"{name}.FIELD=VALUE; known: {', '.join(fields_of(of))}"
        return ConfigError(f"{name}={value}: has fields of its own", hint=hint)
    if name == "planner.forecast" and value in REMOVED_FORECASTS:
        what = f"{name}={value}: this predictor was removed; Holt's errors are smaller"
        return ConfigError(what, hint=quoted_override(name, "holt"))
    expected, example = _expected(of)
    if name == "cluster.gpus_per_node" and (request := gpu_request(str(value))):
        return ConfigError(f"{name}={value}: must be {expected}", hint=request)
    hint = quoted_override(name, _default(name) or example)
    if may_be_unset:
        hint += f", or {quoted_override(name, 'null')}"
    shown = "null" if value is None else value
    return ConfigError(f"{name}={shown}: must be {expected}", hint=hint)


def _default(name: str) -> str:
    """Return the field's default if it can serve as an example; else an empty text."""
    found: Any = msgspec.to_builtins(Config())
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    if found is None or isinstance(found, str | list | dict) or name.endswith(".workers"):
        return found if isinstance(found, str) else ""
    return str(found).lower()


def _expected(of: Any) -> tuple[str, str]:
    """Describe a type's values, and give a valid example."""
    if isinstance(of, type) and issubclass(of, StrEnum):
        known = [str(each) for each in of]
        return f"one of {', '.join(known)}", known[0]
    if get_origin(of) is tuple:
        return "a list", "[a,b]"
    if get_origin(of) is dict:
        return "a mapping", "{a: b}"
    known_types = {
        int: ("a whole number", "1"),
        float: ("a number", "1.0"),
        bool: ("true or false", "true"),
        str: ("a text", "text"),
    }
    return known_types[of]


def engine_option(text: str) -> Any:
    """Return the value of a free engine option. It prints as the same text, except for `true`,
    `false`, `null`, and mappings such as `{a: 1}` that are not JSON."""
    if text in WORDS:
        return WORDS[text]
    if text[:1] in ("{", "["):
        return text if is_json(text) else json_value(text)
    for number in (int, float):
        try:
            if text == str(number(text)) and math.isfinite(number(text)):
                return number(text)
        except ValueError:  # not a number, or one of too many digits
            continue
    return text


def is_json(text: str) -> bool:
    """Return True if the text is JSON that every program reads: without NaN and broken Unicode."""
    try:
        msgspec.json.encode(json.loads(text, parse_constant=_no_constant))
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return False
    return True


def json_value(text: str) -> Any:
    """Return the value of JSON or of a mapping such as `{a: 1}` or `{a:1}`; any other text
    unchanged."""
    if text in WORDS:
        return WORDS[text]
    try:
        value = json.loads(text, parse_constant=_no_constant)
        if msgspec.json.decode(msgspec.json.encode(value)) == value:
            return value
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        pass
    for written in (text, KEY.sub(r"\1: ", text)):
        content = mapping(written)
        if content and not any(each is None for each in content.values()):
            return free(content, JsonValue)
    return text


def mapping(text: str) -> dict[str, Any] | None:
    """Return the content of `{a: b}`, as a file would have it; None for any other text."""
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        content = parse(f"value: {text}\n", text).content["value"]
    except ConfigError:
        return None
    return content if isinstance(content, dict) else None


def free(value: Any, of: Any) -> Any:
    """Return a free value of a file: a quoted text is not converted."""
    match value:
        case bytes():
            return from_text(value.decode(), of, "")
        case list():
            return [free(each, of) for each in value]
        case Mapping():
            return {key: free(each, JsonValue) for key, each in value.items()}
        case _:
            return value


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def elements(text: str) -> list[str]:
    """Return the texts of a list: `[a,b]`, with quotes around elements that contain commas, or
    JSON. Text without brackets is a list of that one text."""
    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    listed = json_value(text)
    if isinstance(listed, list) and all(isinstance(each, str) for each in listed):
        return listed
    inner, found, at = text[1:-1], list[str](), 0
    while at < len(inner):
        match = ELEMENT.match(inner, at)
        assert match is not None  # `bare` matches any text
        at = max(match.end(), at + 1)
        found.append(_element(match))
    return found


def _element(match: re.Match[str]) -> str:
    for quote, group in (("'", "single"), ('"', "double")):
        if match[group] is not None:
            return match[group].replace(f"\\{quote}", quote)
    return match["bare"].strip()
