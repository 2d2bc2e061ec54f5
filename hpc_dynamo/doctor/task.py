"""The doctor's task on each node: collect facts, connect to the others, measure links.

Started by submitit (`main`) or as `python -m hpc_dynamo.doctor.task ATTEMPT`. Node 0 is also the
coordinator.
"""

import asyncio
import logging
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from hpc_dynamo.bootstrap.address import job_address
from hpc_dynamo.config import BootstrapMethod, Config
from hpc_dynamo.descriptors import raise_descriptor_limit
from hpc_dynamo.doctor import facts
from hpc_dynamo.doctor.connectivity import clock_server, connect_to_peers
from hpc_dynamo.doctor.coordinator import (
    CODEC,
    DoctorCoordinator,
    DoctorRendezvous,
    read_token,
    rendezvous_file,
)
from hpc_dynamo.doctor.mpi_step import exchange_error
from hpc_dynamo.doctor.nixl_endpoint import NixlEndpoint, nixl_endpoint
from hpc_dynamo.doctor.records import (
    ConnectPeers,
    DoctorDone,
    DoctorMessage,
    MeasureLink,
    NodeFacts,
    NodeReady,
)
from hpc_dynamo.errors import BootstrapError, KvTransferError
from hpc_dynamo.launch.node import node_index_and_hosts
from hpc_dynamo.launch.task_folder import refuse_unsafe_folder
from hpc_dynamo.printable import LineFormatter
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.wire import ControlClient, ControlServer

SILENCE_TIMEOUT_S = 300.0  # the coordinator waits for the slowest node between two messages

log = logging.getLogger(__name__)


def main(path: str) -> int:
    """Run this node's part. Return 0 unless it failed; findings are no failure."""
    raise_descriptor_limit()
    attempt = Attempt(Path(path))
    if refused := refuse_unsafe_folder(attempt.run):
        return refused
    index, hosts = node_index_and_hosts(attempt.plan().nodes)
    handler = logging.FileHandler(attempt.agent_log(index))
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    try:
        asyncio.run(_node(attempt, index, hosts))
    except ExceptionGroup as group:
        log.error("this node's part failed", exc_info=group)
        return 1
    return 0


async def _node(attempt: Attempt, index: int, hosts: list[str]) -> None:
    address = job_address(attempt.config().cluster.interface, hosts)
    async with asyncio.TaskGroup() as group:
        if index == 0:
            server = ControlServer(address, attempt.run.secrets().keys, CODEC)
            write_json(rendezvous_file(attempt), DoctorRendezvous(endpoint=server.endpoint))
            group.create_task(DoctorCoordinator(attempt, hosts, server).run())
        group.create_task(_DoctorNode(attempt, index, hosts, address).run())


class _DoctorNode:
    """One node of the job."""

    def __init__(self, attempt: Attempt, index: int, hosts: list[str], address: str) -> None:
        self._attempt, self._index, self._hosts, self._address = attempt, index, hosts, address
        self._config: Config = attempt.config()

    async def run(self) -> None:
        endpoint = await self._find_coordinator()
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(clock_server(self._address))
            nixl, error = await self._start_nixl(stack)
            found = await self._collect_facts(error)
            me = NodeReady(
                node=self._index,
                address=self._address,
                port=port,
                facts=found,
                metadata=nixl.metadata if nixl else (),
                memory=nixl.memory if nixl else "",
            )
            client = ControlClient[DoctorMessage](endpoint, self._attempt.run.secrets().keys, CODEC)
            stack.callback(client.close)
            await client.send(me)
            await self._handle_messages(client, nixl)

    async def _handle_messages(
        self, client: ControlClient[DoctorMessage], nixl: NixlEndpoint | None
    ) -> None:
        while True:
            match await client.receive(SILENCE_TIMEOUT_S):
                case ConnectPeers(nodes=nodes):
                    await client.send(await connect_to_peers(self._index, nodes))
                case MeasureLink() as request if nixl:
                    await client.send(await nixl.measure(self._index, request))
                case DoctorDone():
                    return

    async def _find_coordinator(self) -> str:
        """Return the coordinator's endpoint. Raises BootstrapError."""
        wait_s = self._config.cluster.bootstrap.timeout_s
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            try:
                data = rendezvous_file(self._attempt).read_bytes()
                return msgspec.json.decode(data, type=DoctorRendezvous).endpoint
            except FileNotFoundError:
                await asyncio.sleep(0.1)  # a shared disk has no events
        raise BootstrapError(f"node 0 did not start the coordinator within {wait_s:.0f} s")

    async def _start_nixl(self, stack: AsyncExitStack) -> tuple[NixlEndpoint | None, str]:
        name = f"doctor-{self._index}-{os.getpid()}"
        first = next(iter(self._config.by_model.values()))
        try:
            return await stack.enter_async_context(
                nixl_endpoint(name, first.engine, self._address)
            ), ""
        except KvTransferError as e:
            return None, e.message
        except OSError as e:
            return None, f"{first.engine.python} cannot be run: {e.strerror or e}"

    async def _collect_facts(self, nixl_error: str) -> NodeFacts:
        """Collect facts in a thread while all nodes try MPI together."""
        async with asyncio.TaskGroup() as group:
            mpi_error = group.create_task(self._mpi_error())
            found = group.create_task(asyncio.to_thread(self._local_facts))
        errors = {"nixl_error": nixl_error, "mpi_error": mpi_error.result()}
        return msgspec.structs.replace(found.result(), **errors)

    def _local_facts(self) -> NodeFacts:
        config, folder = self._config, self._attempt.path
        plan, host = self._attempt.plan(), self._hosts[self._index]
        engines = dict.fromkeys(facts.engine_error(own.engine) for own in config.by_model.values())
        gpus = facts.planned_gpus(plan, self._index) or plan.gpus_on(self._index)
        quick = facts.preflight_facts(config, gpus, self._address, host)
        return msgspec.structs.replace(
            quick,
            gpus_listed=facts.driver_gpus(),
            rdma_devices=facts.rdma_devices(),
            model_gb_s=facts.model_read_gb_s(facts.local_model(config)),
            run_error=facts.run_folder_error(folder),
            run_token=read_token(self._attempt),
            engine_error="; ".join(filter(None, engines)),
            contained=any(facts.in_container(own.engine) for own in config.by_model.values()),
            mpi=facts.mpi_version(sys.executable),
        )

    async def _mpi_error(self) -> str:
        """Try MPI from node 0, if it is configured."""
        cluster = self._config.cluster
        if error := await asyncio.to_thread(facts.mpi_error, cluster):
            return error
        tries = cluster.bootstrap.method is BootstrapMethod.mpi and self._index == 0
        return await exchange_error(cluster, self._hosts) if tries else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
