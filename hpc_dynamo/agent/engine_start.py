"""Start of an engine, until it serves requests.

Engines answer /health long before they can serve, so an engine counts as ready once it has
generated a token.
"""

import asyncio

from hpc_dynamo.agent.engine_process import EngineProcess
from hpc_dynamo.agent.probe import EngineModels, query_models, serves_token
from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines import engine, pd_protocol_of, probe_fields
from hpc_dynamo.errors import EngineError
from hpc_dynamo.http import HttpClient

PROBE_INTERVAL_S = 0.25


async def wait_until_ready(
    config: Config,
    process: EngineProcess,
    role: Role,
    token: str,
    exit_task: "asyncio.Task[EngineError]",
) -> EngineModels:
    """Wait until the engine has generated a token; return the models that it serves.

    Raises EngineError after `engine.ready_timeout_s`, if the engine logs that it hangs, or if
    `exit_task` is done first. Raises PortTaken if another process has one of its ports.
    """
    timeout_s = config.engine.ready_timeout_s
    probe = asyncio.create_task(_probe(config, process, role, token))
    try:
        await asyncio.wait({exit_task, probe}, timeout=timeout_s, return_when="FIRST_COMPLETED")
        if exit_task.done():
            raise await process.start_error(exit_task.result())
        if not probe.done():
            hint = "increase engine.ready_timeout_s if the model is large or the disk slow"
            raise process.error(f"served no token within {timeout_s:.0f} s", hint)
        return probe.result()
    finally:
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)


async def _probe(config: Config, process: EngineProcess, role: Role, token: str) -> EngineModels:
    hang_messages = engine(config.engine.name).hang_messages
    async with HttpClient.bearer(token) as http:
        fields = probe_fields(pd_protocol_of(config.engine), role)
        name = config.model.served_name
        while not (await process.listens() and await serves_token(http, process.url, name, fields)):
            if any(message in process.log_tail() for message in hang_messages):
                raise await process.start_error(process.error("will never be ready"))
            await asyncio.sleep(PROBE_INTERVAL_S)
        return await query_models(http, process.url)
