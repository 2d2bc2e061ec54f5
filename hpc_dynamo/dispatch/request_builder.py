"""Builds an EngineRequest from a path and a body, for `serve`, `route` and `batch`.

Token ids are computed if the router needs them: to find cached prefixes, or to leave prompts that
are too long to the decode worker. If they cannot be computed, the request is routed by load.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from hpc_dynamo.config import Config, Policy, TopologyKind
from hpc_dynamo.dispatch.context_limit import count_ids, least_tokens, require_context
from hpc_dynamo.dispatch.execution import AGGREGATED, Execution, choose_execution
from hpc_dynamo.dispatch.media_execution import MediaExecution
from hpc_dynamo.dispatch.media_sources import MediaSources
from hpc_dynamo.dispatch.request_context import RequestContext
from hpc_dynamo.dispatch.reserved_fields import check_fields, check_form
from hpc_dynamo.dispatch.worker_client import EngineRequest
from hpc_dynamo.engines import (
    CHAT,
    COMPLETIONS,
    MAX_IDS,
    Body,
    disaggregated_media_of,
    pd_protocol_of,
    prompt_check_of,
    truncates_prompts,
)
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import Header
from hpc_dynamo.json_reader import JsonError, read_value
from hpc_dynamo.large_bodies import off_loop
from hpc_dynamo.preprocess import (
    PROMPT_FIELDS,
    PromptRejected,
    PromptTooLong,
    TokenIdsOnly,
    Tokens,
    UnknownTokens,
)
from hpc_dynamo.router import RoutingRequest, adapter_root, block_hashes

MEMORY_CHECK_S = 2.0  # between two checks of the tokenizer's memory

log = logging.getLogger(__name__)


class PromptTokenizer(Protocol):
    """Computes the token ids of the prompts in a body: a Preprocessor, or a substitute."""

    async def chat(self, body: Mapping[str, Any], max_tokens: int = 0) -> Tokens | UnknownTokens:
        """Return the token ids of a chat. Raises PromptRejected, and may raise PromptTooLong for
        more than `max_tokens` (0: no limit). `body` may have only the PROMPT_FIELDS."""

    async def completion(
        self, body: Mapping[str, Any], max_tokens: int = 0
    ) -> list[Tokens] | UnknownTokens:
        """Return the token ids of each prompt of a completion. See `chat`."""

    def limit_memory(self) -> bool:
        """Bound the memory of the tokenizer. Takes up to 1 s. Return True if it did anything."""


class RequestBuilder:
    """Builds the requests of one model.

    `tokenizer` computes token ids and may be replaced at any time. The default, TokenIdsOnly,
    accepts only prompts that are already token ids.
    """

    def __init__(
        self, config: Config, tokenizer: PromptTokenizer | None = None, model: str = ""
    ) -> None:
        self.tokenizer: PromptTokenizer = tokenizer or TokenIdsOnly()
        self._model, self._protocol = model, pd_protocol_of(config.engine)
        self._prompt_check = prompt_check_of(config)
        self._media = MediaSources(config.engine.allowed_media)
        shared = disaggregated_media_of(config.engine)
        self._media_execution = MediaExecution(self._protocol, shared)
        self._truncates = truncates_prompts(config.engine)
        self._policy, self._block_tokens = config.router.policy, config.router.block_tokens
        self._disaggregated = config.topology.kind is TopologyKind.disaggregated

    async def limit_tokenizer_memory(self) -> None:
        """Bound the memory of the tokenizer, which caches texts. Runs until cancelled."""
        while True:
            await asyncio.sleep(MEMORY_CHECK_S)
            if await asyncio.to_thread(self.tokenizer.limit_memory):
                log.info("the tokenizer's word cache was full and has been reset")

    async def build(
        self, path: str, content: bytes, body: Body, context: RequestContext,
        headers: Sequence[Header] = (),
    ) -> EngineRequest:  # fmt: skip
        """Return the request. `path` may have a query string; `body` is `content`, parsed at least
        one level deep. Raises RequestFailed for a request that could harm an engine, or that is
        too long for the model."""
        bare = path.partition("?")[0]
        await off_loop(len(content), partial(self._check, bare, body, context))
        prompts = await self._tokenize(bare, body, context)
        if bare in (CHAT, COMPLETIONS) and not self._truncates:
            require_context(body, _longest(prompts).least, context.max_context_tokens)
        route = partial(self._route_and_execution, bare, body, context, prompts)
        routing, execution = await off_loop(len(content), route)
        samples = execution.samples
        return EngineRequest(path, content, body, routing, headers, samples, context)

    def _check(self, path: str, body: Body, context: RequestContext) -> None:
        """Raise RequestFailed for what could harm an engine, without the length of texts."""
        check_fields(path, body)
        if path == COMPLETIONS:
            self._check_length(body, context)
        self._media.check(body)
        if self._prompt_check and (reason := self._prompt_check.refusal(path, body)):
            raise RequestFailed(reason, status=400)

    def check_form(self, fields: Sequence[tuple[str, str]]) -> None:
        """Raise RequestFailed for a field of a multipart form that could harm an engine."""
        check_form(fields)
        self._media.check_form(fields)

    async def routing_request(
        self, path: str, body: Body, context: RequestContext
    ) -> RoutingRequest:
        """Return only the routing request for this path and body."""
        prompts = await self._tokenize(path, body, context)
        route = partial(self._route_and_execution, path, body, context, prompts)
        return (await off_loop(_size(body), route))[0]

    def _check_length(self, body: Body, context: RequestContext) -> None:
        """Raise RequestFailed for token ids that are too many, before they are decoded."""
        if not self._truncates:
            require_context(body, least_tokens(body.get("prompt")), context.max_context_tokens)

    def _route_and_execution(
        self, path: str, body: Body, context: RequestContext, prompts: Sequence[Tokens]
    ) -> tuple[RoutingRequest, Execution]:
        longest = _longest(prompts)
        execution = self._execution(path, body, context, longest.least)
        routing = RoutingRequest(
            prompt_tokens=sum(map(len, prompts)),
            block_hashes=self._block_hashes(longest, context),
            may_disaggregate=execution.disaggregated,
            timeout_s=context.timeout_s,
            hints=context.hints,
            model=self._model,
            confirmable_blocks=self._confirmable_blocks(longest),
        )
        return routing, execution

    def _execution(
        self, path: str, body: Body, context: RequestContext, tokens: int = 0
    ) -> Execution:
        if not self._disaggregated:
            return AGGREGATED
        limit = context.context_tokens
        execution = choose_execution(
            path, body, self._protocol, tokens=tokens, context_tokens=limit
        )
        return self._media_execution.of(body, execution)

    def _routes_by_cache(self, context: RequestContext) -> bool:
        return (context.hints.policy or self._policy) is Policy.kv

    def _block_hashes(self, prompt: Tokens, context: RequestContext) -> bytes:
        if not self._routes_by_cache(context):
            return b""
        return block_hashes(prompt.data, self._block_tokens, adapter_root(context.adapter))

    def _confirmable_blocks(self, prompt: Tokens) -> int:
        return -1 if prompt.text_end < 0 else prompt.text_end // self._block_tokens

    async def _tokenize(self, path: str, body: Body, context: RequestContext) -> list[Tokens]:
        """Return the token ids of each prompt.

        Empty if nothing depends on them, or if only the engine can compute them or must reject the
        prompt.
        """
        tokenize = self.tokenizer.chat if path == CHAT else self.tokenizer.completion
        try:
            read = partial(self._prompt_fields, path, body, context)
            if (fields := await off_loop(_size(body), read)) is None:
                return []
            limit = 0 if self._truncates else context.max_context_tokens
            result = await tokenize(fields, limit)
        except PromptTooLong:
            require_context(body, context.max_context_tokens + 1, context.max_context_tokens)
            return []
        except (JsonError, PromptRejected) as e:
            log.info("the engine will reject this request: %s", e)
            return []
        except UnicodeEncodeError:
            log.info("the engine will reject this request: half a surrogate pair in the prompt")
            return []
        if isinstance(result, Tokens):
            return [result]
        return result if isinstance(result, list) else []

    def _prompt_fields(
        self, path: str, body: Body, context: RequestContext
    ) -> dict[str, Any] | None:
        """Return the fields that token ids depend on; None if nothing depends on these ids.

        Raises JsonError, and RequestFailed for a prompt that is too long.
        """
        if path not in (CHAT, COMPLETIONS):
            return None
        if not self._routes_by_cache(context):
            limited = context.context_tokens and self._execution(path, body, context).disaggregated
            if not limited:
                return None
        if path == COMPLETIONS:
            self._check_length(body, context)
        if count_ids(body.get("prompt")) > MAX_IDS:
            log.info("a request with more than %d token ids is routed by load", MAX_IDS)
            return None
        return {name: _decoded(body[name]) for name in body if name in PROMPT_FIELDS}


def _size(body: Body) -> int:
    """Return the bytes of a body that are not decoded yet."""
    return sum(len(memoryview(v)) for v in body.values() if isinstance(v, msgspec.Raw))


def _decoded(value: Any) -> Any:
    """Return the value of a field. Raises JsonError."""
    return read_value(bytes(value)) if isinstance(value, msgspec.Raw) else value


def _longest(prompts: Sequence[Tokens]) -> Tokens:
    return max(prompts, key=len, default=Tokens(b""))
