"""Tokenizer of a batch, with which the router finds workers that have a prefix cached."""

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from hpc_dynamo.config import Config, Policy
from hpc_dynamo.dispatch import Dispatcher, PromptTokenizer
from hpc_dynamo.engines import engine
from hpc_dynamo.frontend.tokenizer_check import tokenizer_matches_engine
from hpc_dynamo.preprocess import (
    Preprocessor,
    TokenIdsOnly,
    Tokens,
    UnknownTokens,
    completion_token_ids,
    load_tokenizer,
    mismatched_tokenizer,
)
from hpc_dynamo.router import RoutingRequest
from hpc_dynamo.simulator import tokenizer
from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.chat_request import TokenizeRequest

log = logging.getLogger(__name__)


class SimulatorTokenizer:
    """Computes token ids as the simulator does, for a run without a model folder."""

    async def chat(self, body: Mapping[str, Any], max_tokens: int = 0) -> Tokens | UnknownTokens:
        fields = {name: body[name] for name in ("messages", "tools") if body.get(name)}
        try:
            return Tokens.of(msgspec.convert(fields, TokenizeRequest).tokens())
        except (msgspec.ValidationError, RequestRejected) as e:
            return UnknownTokens(str(e))

    async def completion(
        self, body: Mapping[str, Any], max_tokens: int = 0
    ) -> list[Tokens] | UnknownTokens:
        return await completion_token_ids(body, self._encode)

    async def _encode(self, text: str, special: bool) -> Tokens:
        return Tokens.of(tokenizer.encode(text))

    def limit_memory(self) -> bool:
        """Do nothing: the memory of the simulator's tokenizer is bounded."""
        return False


def routes_by_kv_cache(config: Config) -> bool:
    """Return True if the router selects workers by their KV caches."""
    several = any(pool.workers > 1 for _, pool in config.topology.pools)
    return several and config.router.policy is Policy.kv


async def load_batch_tokenizer(config: Config) -> PromptTokenizer:
    """Load the tokenizer in a thread, if routing depends on token ids."""
    if not routes_by_kv_cache(config):
        return TokenIdsOnly()
    if config.engine.name == "simulator" and not config.model.path:
        return SimulatorTokenizer()
    return await asyncio.to_thread(load_tokenizer, config, os.environ)


async def verify_tokenizer(
    prompts: PromptTokenizer, config: Config, dispatcher: Dispatcher
) -> PromptTokenizer:
    """Return the tokenizer if the engine computes the same token ids, else one without ids."""
    if not isinstance(prompts, Preprocessor) or not engine(config.engine.name).tokenizes:
        return prompts
    if await tokenizer_matches_engine(
        prompts, dispatcher, config.served_name, RoutingRequest(may_disaggregate=False)
    ):
        return prompts
    return mismatched_tokenizer(config.model)


def routing_notices(prompts: PromptTokenizer, config: Config) -> tuple[str, ...]:
    """Return why prompts are not routed by KV cache, for the user; empty if they are."""
    by_load = isinstance(prompts, TokenIdsOnly) and routes_by_kv_cache(config)
    return (str(prompts),) if by_load else ()
