"""Membership: a worker whose vLLM version the others refuse gets no requests."""

import asyncio

from msgspec.structs import replace

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Role
from hpc_dynamo.errors import EngineError
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.messages import Hello, NodeRecord, Roster, WorkerReport, WorkerState
from hpc_dynamo.router import RequestRouter
from hpc_dynamo.run import Run
from hpc_dynamo.tasks.node import CODEC
from hpc_dynamo.topology import plan
from hpc_dynamo.wire import ControlClient, ControlServer

HERE = "127.0.0.1"
SOON_S = 60.0
WORDS = ("engine=vllm", "engine.device=cpu", "topology=disaggregated", "model.path=/m")
PREFILL = WorkerReport(
    rank=0,
    role=Role.prefill,
    node=0,
    host="n1",
    state=WorkerState.ready,
    url="http://x",
    version="0.32.0",
)
DECODE = replace(PREFILL, rank=1, role=Role.decode, host="n2", version="0.33.0")


async def test_worker_of_another_version_is_lost_and_named(run: Run) -> None:
    config, errors = compose([*WORDS]), list[EngineError]()
    layout = plan(config)
    attempt, keys = run.new_attempt(config, layout), run.secrets().keys
    server = ControlServer(HERE, keys, CODEC)
    agent = ControlClient(server.endpoint, keys, CODEC)
    node = NodeRecord(node=0, host="n1", address=HERE, pid=1, log="")
    router = RequestRouter.from_config(config)
    roster = Roster(nodes=(node,), method="", seconds=0)
    members = Membership(attempt, roster, server, {"": router}, errors.append)
    listening = asyncio.create_task(members.listen())
    try:
        with members.subscribe() as reports:
            for message in (Hello(node=node), PREFILL, DECODE):
                await agent.send(message)
            async with asyncio.timeout(SOON_S):
                states = [(await reports.get()).state for _ in range(2)]
        assert states == [WorkerState.ready, WorkerState.lost]
        assert [worker.rank for worker in router.workers] == [0]
        assert "refuse each other's KV transfers" in members.workers[1].detail
        assert "vllm 0.33.0 of decode worker 1 on n2" in str(errors[0])
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        agent.close()
        server.close()
