"""Conversion of HTTP requests to work for the dispatcher.

The body is read one level deep: fields that are not read go to the engine unchanged.
"""

import msgspec

from hpc_dynamo.config import Config, Policy
from hpc_dynamo.dispatch import RESERVED, Circumstances, Prompts, Work, WorkBuilder, hidden
from hpc_dynamo.engines import CHAT, COMPLETIONS, Body, calling
from hpc_dynamo.frontend.errors import Refused
from hpc_dynamo.frontend.forms import form_fields
from hpc_dynamo.frontend.openapi import POSTS
from hpc_dynamo.frontend.routing_hints import FIELD, take_wish
from hpc_dynamo.frontend.stats import Stats
from hpc_dynamo.http import Request
from hpc_dynamo.json_reader import JsonError, read_fields, read_value
from hpc_dynamo.preprocess import GivenIds
from hpc_dynamo.router import Ask, View

OURS = RESERVED | {FIELD}
XARGS = "vllm_xargs"  # whose entries vLLM puts next to its own fields
NAME = msgspec.json.Decoder(str | None)


class Generation:
    """Prepares requests of one model. `prompts` computes the token ids of their prompts."""

    def __init__(self, config: Config, prompts: Prompts, stats: Stats, model: str = "") -> None:
        self._config, self._stats, self._model = config, stats, model
        self._builder = WorkBuilder(config, prompts, model)

    async def keep_bounded(self) -> None:
        """See WorkBuilder.keep_bounded."""
        await self._builder.keep_bounded()

    @property
    def prompts(self) -> Prompts:
        return self._builder.prompts

    @prompts.setter
    def prompts(self, prompts: Prompts) -> None:
        self._builder.prompts = prompts

    @property
    def notice(self) -> str:
        """Return why texts are not routed by KV cache, see Lane.notice."""
        by_cache = self._config.router.policy is Policy.kv
        return str(self.prompts) if by_cache and isinstance(self.prompts, GivenIds) else ""

    async def work(self, request: Request, body: Body, own_id: str, view: View) -> Work:
        """`body` is the request's. Raises Refused for what no engine would take."""
        content, given = request.body, self._circumstances(request, body, view)
        extensions = body.keys() & OURS
        _check_hidden(body if request.path not in POSTS else {XARGS: body.get(XARGS)})
        own = calling(self._config, given.adapter) if given.adapter else {}
        renamed = own or self._renamed(body, view)
        if extensions or renamed:
            body = {k: v for k, v in body.items() if k not in extensions} | renamed
            content = msgspec.json.encode(body)
        path = _target(request)
        headers = [(b"x-request-id", own_id.encode())]
        work = await self._builder.work(path, content, body, given, headers)
        self._stats.prompt_tokens += work.ask.tokens
        return work

    async def ask(self, request: Request, body: Body, view: View) -> Ask:
        """Return the routing request for a chat or completion with this body."""
        path = CHAT if "messages" in body else COMPLETIONS
        given = self._circumstances(request, body, view)
        return await self._builder.ask(path, request.body, body, given)

    def form(self, request: Request, own_id: str) -> Work:
        """Return the work for a form, such as audio, forwarded unchanged. Raises Refused."""
        fields = form_fields(request.body)
        if forbidden := sorted(fields.keys() & OURS):
            raise Refused(400, f"the form has fields that only the endpoint may set: {forbidden}")
        _check_hidden({XARGS: fields[XARGS].encode() if XARGS in fields else None})
        kind = (b"content-type", request.headers["content-type"].encode("latin-1"))
        ask = Ask(split=False, wish=take_wish(request.headers, {}), model=self._model)
        headers = [(b"x-request-id", own_id.encode()), kind]
        return Work(_target(request), request.body, {}, ask, headers)

    def _renamed(self, body: Body, view: View) -> Body:
        """Replace the full hub id, which the engine does not know, by the served name."""
        aliases = view.of(self._model).aliases
        name = aliases.get(asked_model(body) or "") if aliases else None
        return {"model": name} if name else {}

    def _circumstances(self, request: Request, body: Body, view: View) -> Circumstances:
        offer = view.of(self._model)
        name = asked_model(body) if offer.adapters else None
        return Circumstances(
            wish=take_wish(request.headers, body),
            adapter=name if name in offer.adapters else None,
            context_tokens=offer.context_tokens,
        )


def _check_hidden(body: Body) -> None:
    """Refuse reserved fields inside of other fields: some engine paths read them there. Raises
    Refused."""
    for name, value in body.items():
        if value is None:
            continue
        try:
            found = hidden(read_value(bytes(value)))
        except JsonError as e:
            raise Refused(400, f"{name} is not JSON: {e}", param=name) from e
        if found:
            what = f"{name} holds {', '.join(sorted(found))}, which only the endpoint may set"
            raise Refused(400, what, param=name)


def _target(request: Request) -> str:
    return f"{request.path}?{request.query}" if request.query else request.path


def asked_model(body: Body) -> str | None:
    """What a body names. Raises Refused for what cannot be a name."""
    try:
        name: str | None = NAME.decode(body.get("model", b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Refused(400, "model must be a string", param="model") from e
    return name


def read_body(content: bytes) -> Body:
    """Return the fields of a request's body. Raises Refused."""
    try:
        return {**read_fields(content)}
    except JsonError as e:
        raise Refused(400, f"the body is not a JSON object: {e}") from e
