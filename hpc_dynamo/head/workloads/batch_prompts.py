"""Tokenizer of a batch; with it the router finds the worker that has a prefix cached."""

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from hpc_dynamo.config import Config, Policy
from hpc_dynamo.dispatch import Dispatcher, Prompts
from hpc_dynamo.engines import engine
from hpc_dynamo.frontend.tokenizer_check import agrees
from hpc_dynamo.preprocess import (
    GivenIds,
    Preprocessor,
    Tokens,
    Unpredictable,
    different,
    load_prompts,
    token_ids,
)
from hpc_dynamo.router import Ask
from hpc_dynamo.simulator import tokenizer
from hpc_dynamo.simulator.api_error import Refused
from hpc_dynamo.simulator.chat import TokenizeRequest

log = logging.getLogger(__name__)


class SimulatorPrompts:
    """Computes token ids as the simulator does, for a run without a model folder."""

    async def chat(self, body: Mapping[str, Any]) -> Tokens | Unpredictable:
        read = {name: body[name] for name in ("messages", "tools") if body.get(name)}
        try:
            return Tokens.of(msgspec.convert(read, TokenizeRequest).tokens())
        except (msgspec.ValidationError, Refused) as e:
            return Unpredictable(str(e))

    async def completion(self, body: Mapping[str, Any]) -> list[Tokens] | Unpredictable:
        return await token_ids(body, self._encode)

    async def _encode(self, text: str, special: bool) -> Tokens:
        return Tokens.of(tokenizer.encode(text))

    def renew(self) -> bool:
        """Do nothing: the memory of the simulator's tokenizer is bounded."""
        return False


def routes_by_kv_cache(config: Config) -> bool:
    """Return True if a worker is chosen by its KV cache: there are several of a role."""
    several = any(pool.workers > 1 for _, pool in config.topology.pools)
    return several and config.router.policy is Policy.kv


async def load_tokenizer(config: Config) -> Prompts:
    """Load the tokenizer in a thread, if the choice of a worker depends on token ids."""
    if not routes_by_kv_cache(config):
        return GivenIds()
    if config.engine.name == "simulator" and not config.model.path:
        return SimulatorPrompts()
    return await asyncio.to_thread(load_prompts, config, os.environ)


async def verify_tokenizer(prompts: Prompts, config: Config, dispatcher: Dispatcher) -> Prompts:
    """Return the tokenizer if the engine computes the same token ids, else one without ids."""
    if not isinstance(prompts, Preprocessor) or not engine(config.engine.name).tokenizes:
        return prompts
    if await agrees(prompts, dispatcher, config.served_name, Ask(split=False)):
        return prompts
    return different(config)


def routing_notices(prompts: Prompts, config: Config) -> tuple[str, ...]:
    """Return why prompts are not routed by KV cache, for the user; empty if they are."""
    by_load = isinstance(prompts, GivenIds) and routes_by_kv_cache(config)
    return (str(prompts),) if by_load else ()
