"""From a request's body to work for the dispatcher.

The body is looked at one level deep: what nobody here reads goes to the engine as it came.
Token ids are computed for the router; where they cannot be told, the request is routed by load
alone.
"""

import logging
from typing import Any

import msgspec

from hpc_dynamo.config import Config, Kind, Policy
from hpc_dynamo.dispatch import Work
from hpc_dynamo.engines import Body, Concurrent, calling, dialect
from hpc_dynamo.frontend.errors import Refused
from hpc_dynamo.frontend.stats import Stats
from hpc_dynamo.frontend.wishes import FIELD, take_wish
from hpc_dynamo.http import Request
from hpc_dynamo.json_reader import JsonError, read_fields, read_value
from hpc_dynamo.preprocess import GivenIds, Preprocessor, PromptRejected, Tokens
from hpc_dynamo.router import Ask, View, Wish, block_hashes, root

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

# Where a worker pulls its blocks from is for us alone to say: wrong blocks kill an engine.
OURS = frozenset(
    {
        "bootstrap_host", "bootstrap_port", "bootstrap_room", "disaggregated_params",
        "ec_transfer_params", "kv_transfer_params", FIELD,
    }
)  # fmt: skip
NAME = msgspec.json.Decoder(str | None)
COUNT = msgspec.json.Decoder(int | None)

log = logging.getLogger(__name__)


class Generation:
    """Prepares requests of one model. `prompts` gives the ids of their prompts."""

    def __init__(
        self, config: Config, prompts: Preprocessor | GivenIds, stats: Stats, model: str = ""
    ) -> None:
        self.prompts, self._stats, self._model = prompts, stats, model
        self._config = config
        self._policy = config.router.policy
        self._block = config.router.block_tokens
        self._can_split = config.topology.kind is Kind.disaggregated
        # Engines that always share a request also share what others leave to one of them.
        self._must_split = self._can_split and isinstance(dialect(config), Concurrent)

    async def work(self, request: Request, body: Body, own_id: str, view: View) -> Work:
        """`body` is the request's. Raises Refused for what no engine would take."""
        content = request.body
        ours, wish = body.keys() & OURS, take_wish(request.headers, body)
        adapter = self._adapter(body, view)
        renamed = calling(self._config, adapter) if adapter else {}
        if ours or renamed:
            body = {k: v for k, v in body.items() if k not in ours} | renamed
            content = msgspec.json.encode(body)
        path = f"{request.path}?{request.query}" if request.query else request.path
        headers = [(b"x-request-id", own_id.encode())]
        ask = await self._ask(request.path, content, body, view, wish, adapter)
        return Work(path, content, body, ask, headers)

    async def ask(self, request: Request, body: Body, view: View) -> Ask:
        """How a body of chat or completions, sent elsewhere, would be put to the router."""
        wish, path = take_wish(request.headers, body), CHAT if "messages" in body else COMPLETIONS
        return await self._ask(path, request.body, body, view, wish, self._adapter(body, view))

    def _adapter(self, body: Body, view: View) -> str | None:
        """The LoRA adapter that is asked for, if it is one: its blocks are not the model's."""
        adapters = view.of(self._model).adapters
        name = asked_model(body) if adapters else None
        return name if name in adapters else None

    async def _ask(
        self, path: str, content: bytes, body: Body, view: View, wish: Wish, adapter: str | None
    ) -> Ask:
        by_cache = (wish.policy or self._policy) is Policy.kv
        model, context = self._model, view.of(self._model).context_tokens
        if path not in (CHAT, COMPLETIONS):
            return Ask(split=False, wish=wish, model=model)
        split = self._must_split or (self._can_split and _one_answer(body))
        if not (by_cache or (split and context)):
            # Neither the choice nor the hand-over depends on the ids.
            return Ask(split=split, wish=wish, model=model)
        prompts = await self._tokens(path, _value(content))
        if not prompts:
            return Ask(split=split, wish=wish, model=model)
        longest, tokens = max(prompts, key=len), sum(map(len, prompts))
        self._stats.prompt_tokens += tokens
        hashes = block_hashes(longest.data, self._block, root(adapter)) if by_cache else b""
        if not self._must_split:
            split = split and len(prompts) == 1 and _fits(len(longest), body, context)
        return Ask(tokens=tokens, hashes=hashes, split=split, wish=wish, model=model)

    async def _tokens(self, path: str, body: dict[str, Any]) -> list[Tokens]:
        """Of each prompt; empty where only the engine can tell, or is to refuse them."""
        try:
            if path == CHAT:
                found = await self.prompts.chat(body)
                return [found] if isinstance(found, Tokens) else []
            several = await self.prompts.completion(body)
            return several if isinstance(several, list) else []
        except PromptRejected as e:
            log.info("left to the engine to refuse: %s", e.message)
        except UnicodeEncodeError:
            log.info("left to the engine to refuse: the prompt holds half a surrogate pair")
        return []


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


def _value(content: bytes) -> dict[str, Any]:
    """Return a body that is read completely. Raises Refused for what no engine would read."""
    try:
        value: dict[str, Any] = read_value(content)
    except JsonError as e:
        raise Refused(400, f"the body is not JSON: {e}") from e
    return value


def _fits(tokens: int, body: Body, context: int) -> bool:
    """Whether an engine would take these lengths. What it refuses goes to the decode worker
    alone, which does so in its own words, and no prefill worker computes the prompt first."""
    wanted = body.get("max_completion_tokens") or body.get("max_tokens") or b"null"
    try:
        answer = COUNT.decode(wanted) or 1
    except msgspec.ValidationError:
        return False
    return not context or (tokens < context and 0 < answer <= context)


def _one_answer(body: Body) -> bool:
    """Whether the hand-over is safe and of use. Several answers to one prompt would pull the
    same blocks, which are given up after the first; log-probabilities of the prompt come from
    computing it. In these cases the decode worker does all itself."""
    counts = (bytes(body.get(field, b"1")).strip() for field in ("n", "best_of"))
    if not all(n in (b"1", b"null") for n in counts):
        return False
    return not any(field in body for field in ("use_beam_search", "prompt_logprobs", "echo"))
