"""Builds the dispatcher's work from a request's path and body, for `serve`, `route` and `batch`.

Token ids are computed for the router if it needs them: to find cached prefixes, or to leave prompts
that are too long to the decode worker. If they cannot be computed, the request is routed by load.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hpc_dynamo.config import Config, Policy, TopologyKind
from hpc_dynamo.dispatch.execution import AGGREGATED, Execution, choose_execution
from hpc_dynamo.dispatch.worker_client import EngineRequest
from hpc_dynamo.engines import CHAT, COMPLETIONS, Body, pd_protocol_of, prompt_check_of
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import Header
from hpc_dynamo.json_reader import JsonError, read_value
from hpc_dynamo.preprocess import PromptRejected, TokenIdsOnly, Tokens, UnknownTokens
from hpc_dynamo.router import RoutingHints, RoutingRequest, adapter_root, block_hashes

RENEW_S = 2.0  # between two checks of the tokenizer's memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Facts that the router needs about a request and its body does not contain.

    `adapter` is the LoRA adapter that is requested, whose KV blocks are not the base model's.
    `context_tokens` is the length of the model's context, 0 if not known. `timeout_s` limits the
    time in the queue, 0 for the router's own limit.
    """

    hints: RoutingHints = field(default_factory=RoutingHints)
    adapter: str | None = None
    context_tokens: int = 0
    timeout_s: float = 0.0


class PromptTokenizer(Protocol):
    """Computes the token ids of the prompts in a body."""

    async def chat(self, body: Mapping[str, Any]) -> Tokens | UnknownTokens:
        """Token ids of a chat. Raises PromptRejected if the chat template refuses it."""

    async def completion(self, body: Mapping[str, Any]) -> list[Tokens] | UnknownTokens:
        """Token ids of each prompt of a completion. Raises PromptRejected."""

    def limit_memory(self) -> bool:
        """Bound the memory of the tokenizer; takes up to 1 s. Return True if it did anything."""


class RequestBuilder:
    """Builds the work for requests of one model.

    `prompts` computes token ids and may be replaced at any time. GivenIds, the default, needs no
    tokenizer and only passes on prompts that are token ids already.
    """

    def __init__(
        self, config: Config, tokenizer: PromptTokenizer | None = None, model: str = ""
    ) -> None:
        self.prompts: PromptTokenizer = tokenizer or TokenIdsOnly()
        self._model, self._dialect = model, pd_protocol_of(config)
        self._fatal = prompt_check_of(config)
        self._policy, self._block = config.router.policy, config.router.block_tokens
        self._disaggregated = config.topology.kind is TopologyKind.disaggregated

    async def limit_tokenizer_memory(self) -> None:
        """Bound the memory of the tokenizer, which caches texts. Runs until cancelled."""
        while True:
            await asyncio.sleep(RENEW_S)
            if await asyncio.to_thread(self.prompts.limit_memory):
                log.info("the tokenizer's cache of words was full and is empty now")

    async def build(
        self, path: str, content: bytes, body: Body, given: RequestContext,
        headers: Sequence[Header] = (),
    ) -> EngineRequest:  # fmt: skip
        """Build the work. `path` may have a query string; `body` is `content`, read one level deep.

        Raises RequestFailed for a prompt that would end the engine.
        """
        bare = path.partition("?")[0]
        if self._fatal and (reason := self._fatal.refusal(bare, body)):
            raise RequestFailed(reason, status=400)
        ask, how = await self._decide(bare, content, body, given)
        return EngineRequest(path, content, body, ask, headers, how.samples)

    async def routing_request(
        self, path: str, content: bytes, body: Body, given: RequestContext
    ) -> RoutingRequest:
        """Return the routing request for a request with this path and body."""
        return (await self._decide(path, content, body, given))[0]

    async def _decide(
        self, path: str, content: bytes, body: Body, given: RequestContext
    ) -> tuple[RoutingRequest, Execution]:
        tokenizer = await self._prompts(path, content, body, given)
        longest, tokens = max(tokenizer, key=len, default=Tokens(b"")), sum(map(len, tokenizer))
        how = self._execution(path, body, given, len(longest))
        ask = RoutingRequest(
            prompt_tokens=tokens,
            block_hashes=self._hashes(longest, given),
            may_disaggregate=how.disaggregated,
            timeout_s=given.timeout_s,
            hints=given.hints,
            model=self._model,
        )
        return ask, how

    def _execution(
        self, path: str, body: Body, given: RequestContext, tokens: int = 0
    ) -> Execution:
        if not self._disaggregated:
            return AGGREGATED
        context = given.context_tokens
        return choose_execution(path, body, self._dialect, tokens=tokens, context_tokens=context)

    def _by_cache(self, given: RequestContext) -> bool:
        return (given.hints.policy or self._policy) is Policy.kv

    def _hashes(self, prompt: Tokens, given: RequestContext) -> bytes:
        if not self._by_cache(given):
            return b""
        return block_hashes(prompt.data, self._block, adapter_root(given.adapter))

    async def _prompts(
        self, path: str, content: bytes, body: Body, given: RequestContext
    ) -> list[Tokens]:
        """Return the token ids of each prompt; empty if nothing depends on them, or if only the
        engine can compute them or must refuse the prompt."""
        if path not in (CHAT, COMPLETIONS):
            return []
        if not self._by_cache(given):
            decides = given.context_tokens and self._execution(path, body, given).disaggregated
            if not decides:
                return []
        try:
            known = read_value(content)
            found = await (self.prompts.chat if path == CHAT else self.prompts.completion)(known)
        except (JsonError, PromptRejected) as e:
            log.info("left to the engine to refuse: %s", e)
            return []
        except UnicodeEncodeError:
            log.info("left to the engine to refuse: the prompt holds half a surrogate pair")
            return []
        if isinstance(found, Tokens):
            return [found]
        return found if isinstance(found, list) else []
