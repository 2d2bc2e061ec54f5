"""The tokenizer of a batch, which the router needs to find the worker that has a prefix cached."""

import asyncio
import logging
import os

from hpc_dynamo.config import Config, Policy
from hpc_dynamo.dispatch import Dispatcher
from hpc_dynamo.engines import engine
from hpc_dynamo.frontend.verify import agrees
from hpc_dynamo.preprocess import GivenIds, Preprocessor, different, load_prompts
from hpc_dynamo.router import Ask

log = logging.getLogger(__name__)


def chooses_by_cache(config: Config) -> bool:
    """Return whether a worker is chosen by its KV cache: there are several of a role."""
    several = any(pool.workers > 1 for _, pool in config.topology.pools)
    return several and config.router.policy is Policy.kv


async def load(config: Config) -> Preprocessor | GivenIds:
    """Load the tokenizer in a thread, if the choice of a worker depends on token ids."""
    if not chooses_by_cache(config):
        return GivenIds()
    return await asyncio.to_thread(load_prompts, config, os.environ)


async def verified(
    prompts: Preprocessor | GivenIds, config: Config, dispatcher: Dispatcher
) -> Preprocessor | GivenIds:
    """Return the tokenizer if the engine computes the same token ids, else one without ids."""
    if not isinstance(prompts, Preprocessor) or not engine(config.engine.name).tokenizes:
        return prompts
    if await agrees(prompts, dispatcher, config.served_name, Ask(split=False)):
        return prompts
    return different(config)


def notice(prompts: Preprocessor | GivenIds, config: Config) -> tuple[str, ...]:
    """Return what the user has to know: why prompts are not routed by the KV cache."""
    if isinstance(prompts, Preprocessor) or not chooses_by_cache(config):
        return ()
    return (str(prompts),)
