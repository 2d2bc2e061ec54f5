"""From an HTTP request to work for the dispatcher.

The body is looked at one level deep: what nobody here reads goes to the engine as it came.
"""

import msgspec

from hpc_dynamo.config import Config
from hpc_dynamo.dispatch import RESERVED, Circumstances, Work, WorkBuilder
from hpc_dynamo.engines import CHAT, COMPLETIONS, Body, calling
from hpc_dynamo.frontend.errors import Refused
from hpc_dynamo.frontend.stats import Stats
from hpc_dynamo.frontend.wishes import FIELD, take_wish
from hpc_dynamo.http import Request
from hpc_dynamo.json_reader import JsonError, read_fields
from hpc_dynamo.preprocess import GivenIds, Preprocessor
from hpc_dynamo.router import Ask, View

OURS = RESERVED | {FIELD}
NAME = msgspec.json.Decoder(str | None)


class Generation:
    """Prepares requests of one model. `prompts` computes the token ids of their prompts."""

    def __init__(
        self, config: Config, prompts: Preprocessor | GivenIds, stats: Stats, model: str = ""
    ) -> None:
        self._config, self._stats, self._model = config, stats, model
        self._builder = WorkBuilder(config, prompts, model)

    @property
    def prompts(self) -> Preprocessor | GivenIds:
        return self._builder.prompts

    @prompts.setter
    def prompts(self, prompts: Preprocessor | GivenIds) -> None:
        self._builder.prompts = prompts

    async def work(self, request: Request, body: Body, own_id: str, view: View) -> Work:
        """`body` is the request's. Raises Refused for what no engine would take."""
        content, given = request.body, self._circumstances(request, body, view)
        ours = body.keys() & OURS
        renamed = calling(self._config, given.adapter) if given.adapter else {}
        if ours or renamed:
            body = {k: v for k, v in body.items() if k not in ours} | renamed
            content = msgspec.json.encode(body)
        path = f"{request.path}?{request.query}" if request.query else request.path
        headers = [(b"x-request-id", own_id.encode())]
        work = await self._builder.work(path, content, body, given, headers)
        self._stats.prompt_tokens += work.ask.tokens
        return work

    async def ask(self, request: Request, body: Body, view: View) -> Ask:
        """What the router is asked for a chat or completion with this body."""
        path = CHAT if "messages" in body else COMPLETIONS
        given = self._circumstances(request, body, view)
        return await self._builder.ask(path, request.body, body, given)

    def _circumstances(self, request: Request, body: Body, view: View) -> Circumstances:
        offer = view.of(self._model)
        name = asked_model(body) if offer.adapters else None
        return Circumstances(
            wish=take_wish(request.headers, body),
            adapter=name if name in offer.adapters else None,
            context_tokens=offer.context_tokens,
        )


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
