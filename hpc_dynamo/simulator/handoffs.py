"""KV hand-offs of an engine. Each data-parallel rank has a NIXL agent over its own KV cache."""

import argparse
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from hpc_dynamo.http import HttpClient
from hpc_dynamo.kv.agent import KvAgent
from hpc_dynamo.simulator.engine_context import EngineContext
from hpc_dynamo.simulator.kv_handoff import NixlHandoff, SideChannel
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sglang_bootstrap import (
    BootstrapHandoff,
    BootstrapRooms,
    SglangRank,
    bootstrap_server,
)


@asynccontextmanager
async def with_handoffs(
    engine: EngineContext, args: argparse.Namespace, port: int, key: str
) -> AsyncIterator[tuple[EngineContext, list[Coroutine[None, None, None]]]]:
    """Add hand-offs to an engine. Yield the new engine and the tasks that end leases."""
    schedulers = engine.scheduler.ranks
    names = agent_names(args.role, len(schedulers))
    agents = [_agent(*each) for each in zip(names, schedulers, strict=True)]
    host = args.advertise_host or args.host
    channel = SideChannel(host, port, args.kv_lease_s, args.kv_transfer_timeout_s)
    async with HttpClient.bearer(key) as client, AsyncExitStack() as stack:
        rooms, sglang = list[BootstrapRooms](), None
        if args.pd_protocol == "sglang":
            rooms = [BootstrapRooms(args.kv_lease_s) for _ in schedulers]
            server = bootstrap_server(rooms, args.host, args.disaggregation_bootstrap_port, key)
            sglang = SglangRank(args.role, await stack.enter_async_context(server), len(rooms))
        handoffs = list[NixlHandoff]()
        for dp_rank, (agent, scheduler) in enumerate(zip(agents, schedulers, strict=True)):
            memory = scheduler.model.memory
            corrupt = memory.corrupt if args.damage_kv else None
            parts = (scheduler.metrics, scheduler.release, memory.flush, corrupt)
            if rooms:
                own = rooms[dp_rank]
                handoffs.append(BootstrapHandoff(agent, channel, client, *parts, rooms=own))
            else:
                handoffs.append(NixlHandoff(agent, channel, client, *parts))
            scheduler.handoff = handoffs[-1]
        by_name = {agent.name: agent for agent in agents}
        yield replace(engine, agents=by_name, sglang=sglang), [each.watch() for each in handoffs]


def agent_names(role: str, ranks: int) -> list[str]:
    """Return unique names of agents, with vLLM's suffix if there are several ranks."""
    name = f"{role}-{uuid.uuid4()}"
    return [f"{name}_dp{rank}" for rank in range(ranks)] if ranks > 1 else [name]


def _agent(name: str, scheduler: Scheduler) -> KvAgent:
    memory = scheduler.model.memory
    return KvAgent(name, memory.buffer, memory.block_bytes)
