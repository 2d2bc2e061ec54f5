"""A worker sleeps only if its engine can transfer KV blocks after it has slept."""

import asyncio

import pytest
from msgspec.structs import replace

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Role
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.head.membership.external import ExternalWorkers
from hpc_dynamo.head.workloads.sleep_mode import SleepController
from hpc_dynamo.head.workloads.workload import HeadContext, model_routes
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import WorkerState
from hpc_dynamo.run import Run
from hpc_dynamo.topology import plan

URL = "http://127.0.0.1:1"
MODEL = ("engine=vllm", "model.path=/m", "engine.sleep_mode=true")
WORDS = (*MODEL, "topology=disaggregated", "cluster.gpus_per_node=2")


async def sleep_error(run: Run, version: str) -> RequestFailed:
    """Return the error for a prefill worker of this version; nothing listens at its URL."""
    config = compose([*WORDS, f"route.prefill=[{URL}]", f"route.decode=[{URL}]"])
    attempt = run.new_attempt(config, plan(config))
    async with HttpClient.bearer("key") as http, asyncio.TaskGroup() as tasks:
        routes = model_routes(config, http)
        members = ExternalWorkers(config, routes[""].router, http, tasks)
        ready = replace(members.workers[0], state=WorkerState.ready, version=version)
        members.workers[0] = ready
        await routes[""].router.add_worker(0, Role.prefill, URL)
        controller = SleepController(HeadContext(attempt, config, routes, members, http))
        with pytest.raises(RequestFailed) as failed:
            await controller.set_asleep(0, True)
    return failed.value


async def test_worker_that_cannot_transfer_afterwards_does_not_sleep(run: Run) -> None:
    error = await sleep_error(run, "0.32.0")
    assert error.status == 409
    assert error.message.startswith("worker 0 cannot sleep: vLLM 0.32.0 does not register")


async def test_newer_worker_is_put_to_sleep(run: Run) -> None:
    error = await sleep_error(run, "0.33.0")
    assert error.status == 502, "its engine is asked"
