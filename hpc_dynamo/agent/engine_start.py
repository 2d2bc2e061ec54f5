"""The start of a worker, until it serves. Engines announce nothing, and answer /health long
before: one counts as ready when it has served a token."""

import asyncio

from hpc_dynamo.agent.engine_process import EngineProcess
from hpc_dynamo.agent.probe import EngineModels, query_models, serves_token
from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines import engine, pd_protocol_of, probe_fields
from hpc_dynamo.errors import EngineError
from hpc_dynamo.http import HttpClient

PROBE_S = 0.25  # between two tries to get a first token


async def wait_until_ready(
    config: Config, part: EngineProcess, role: Role, token: str, over: "asyncio.Task[EngineError]"
) -> EngineModels:
    """Returns once the engine has served a token. Raises EngineError, also when it is `over`."""
    timeout_s = config.engine.ready_timeout_s
    served = asyncio.create_task(_probe(config, part, role, token))
    try:
        await asyncio.wait({over, served}, timeout=timeout_s, return_when="FIRST_COMPLETED")
        if over.done():
            raise over.result()
        if not served.done():
            hint = "engine.ready_timeout_s, if the model is large or the disk slow"
            raise part.error(f"served no token within {timeout_s:.0f} s", hint)
        return served.result()
    finally:
        served.cancel()
        await asyncio.gather(served, return_exceptions=True)


async def _probe(config: Config, part: EngineProcess, role: Role, token: str) -> EngineModels:
    """What is served, once a token was. Raises EngineError where the log says never."""
    never_ready = engine(config.engine.name).hang_messages
    async with HttpClient.bearer(token) as http:
        fields = probe_fields(pd_protocol_of(config), role)
        while not await serves_token(http, part.url, config.model.served_name, fields):
            if any(sign in part.log_tail() for sign in never_ready):
                raise part.error("will never be ready")
            await asyncio.sleep(PROBE_S)
        return await query_models(http, part.url)
