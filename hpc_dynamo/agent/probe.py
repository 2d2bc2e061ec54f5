"""Asks a young engine whether it serves, and what."""

from dataclasses import dataclass

import msgspec

from hpc_dynamo.http import Client


@dataclass(frozen=True)
class Served:
    """What an engine says of its models, at /v1/models."""

    models: tuple[str, ...] = ()
    context_tokens: int = 0  # longest prompt and answer together; 0: it does not say


NOTHING = Served()


async def serves(http: Client, url: str, model: str) -> bool:
    """Whether the engine has served a token now; it may not even listen yet."""
    body = {"model": model, "prompt": "Hello", "max_tokens": 1}
    try:
        return bool(await _ask(http, "POST", url, "/v1/completions", body))
    except OSError:
        return False


async def what_is_served(http: Client, url: str) -> Served:
    """Nothing from engines that do not say."""
    try:
        return _served(await _ask(http, "GET", url, "/v1/models"))
    except OSError:  # it died a moment later, which its keeper tells
        return NOTHING


async def _ask(http: Client, method: str, url: str, path: str, body: object = None) -> bytes:
    """The content of a good answer, empty for any other. Raises OSError."""
    async with http.send(method, url, path, msgspec.json.encode(body)) as answer:
        content = await answer.read()
        return content if answer.status == 200 else b""


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


def _served(content: bytes) -> Served:
    """From an answer of /v1/models; engines that have none are taken as they are."""
    try:
        models = msgspec.json.decode(content, type=_Models).data
    except msgspec.DecodeError:
        return NOTHING
    longest = max((m.max_model_len or 0 for m in models), default=0)
    return Served(tuple(m.id for m in models), longest)
