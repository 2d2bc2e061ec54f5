"""Workload of an endpoint: its port, its frontend processes, and the drain."""

import asyncio
import logging
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from hpc_dynamo.bootstrap.address import address_for_clients
from hpc_dynamo.errors import EngineError
from hpc_dynamo.head.workloads.endpoint_socket import EndpointSocket, KeptPort
from hpc_dynamo.head.workloads.endpoint_state import EndpointState
from hpc_dynamo.head.workloads.frontend_process import FrontendProcess, default_frontend_count
from hpc_dynamo.head.workloads.frontends import FrontendTotals
from hpc_dynamo.head.workloads.sleep_mode import SleepController
from hpc_dynamo.head.workloads.workload import HeadContext
from hpc_dynamo.launch.walltime import DURATION_QUANTILE
from hpc_dynamo.messages import Endpoint, Outcome, Status
from hpc_dynamo.process.node_folder import private_node_folder
from hpc_dynamo.router import RouterServer, RunView
from hpc_dynamo.run import write_json

PORT_WAIT_S, PORT_POLL_S = 15.0, 0.1  # for frontends of an earlier head to close the port
ANY_ADDRESS = ("0.0.0.0", "::")

log = logging.getLogger(__name__)


class ServeWorkload:
    """An OpenAI endpoint, see Workload."""

    def __init__(self, context: HeadContext) -> None:
        self._context, self._config = context, context.config
        self._draining, self._frontends = asyncio.Event(), FrontendTotals()
        self._sleep_controller = SleepController(context)
        self._state = EndpointState(context, self._frontends)
        self.phase = "loading"

    async def run(self) -> Outcome:
        """Serve until drained. Raises EngineError if the port is in use or a frontend fails."""
        host = self._config.serve.host or address_for_clients(self._context.members.address)
        with private_node_folder() as folder:
            with ExitStack() as stack:
                kept = self._context.endpoint_socket or stack.enter_context(KeptPort(host)).socket
                port = stack.enter_context(await self._open_port(host, kept))
                await self._serve(Path(folder) / "router", host, port)
        return Outcome(exit_code=0, message="the walltime ended; the endpoint was drained first")

    async def _open_port(self, host: str, kept: socket.socket) -> EndpointSocket:
        """Open the port: after a restart of the head that of before, which its frontends close."""
        attempt, port = self._context.attempt, self._config.serve.port
        shared = self._count > 1 or self._config.planner.job_handover
        earlier, began = attempt.endpoint(), time.monotonic()
        if earlier and earlier.host == socket.gethostname():
            port = earlier.port
        while True:
            try:
                return EndpointSocket(host, port, shared=shared, attempt=attempt, kept=kept)
            except EngineError:
                if earlier is None or time.monotonic() - began > PORT_WAIT_S:
                    raise
            await asyncio.sleep(PORT_POLL_S)

    @property
    def _count(self) -> int:
        """Return the number of frontend processes."""
        return self._config.serve.frontend_processes or default_frontend_count()

    async def _serve(self, router_socket: Path, host: str, port: EndpointSocket) -> None:
        routes, frontends = self._context.routes, self._frontends
        routers = {model: route.router for model, route in routes.items()}
        set_asleep = self._sleep_controller.set_asleep
        handlers = frontends.update, frontends.frontend_exited, set_asleep
        async with RouterServer(routers, router_socket, self._view, *handlers) as server:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._frontend(index, router_socket, port).keep_running())
                    for index in range(self._count)
                ]
                try:
                    for route in routes.values():
                        await route.router.wait_for_roles(route.roles)
                    await frontends.wait_for_first_report()
                    server.push_view()  # frontends must be ready before the URL is published
                    self._publish(host, port.port)
                    await self._draining.wait()
                    server.push_view()
                    for route in routes.values():
                        await route.router.wait_idle()
                    await frontends.wait_for_forwarded()
                finally:
                    port.close()
                    server.close_clients()  # frontends end their running requests
                    for task in tasks:
                        task.cancel()

    def _frontend(self, index: int, router_socket: Path, port: EndpointSocket) -> FrontendProcess:
        silence_s = self._config.cluster.heartbeat_timeout_s
        attempt, reports = self._context.attempt, self._frontends
        return FrontendProcess(attempt, index, router_socket, port, reports, silence_s)

    def _publish(self, host: str, port: int) -> None:
        """Write the endpoint's address to the run folder."""
        serve, scheme = self._config.serve, "https" if self._config.serve.tls_cert else "http"
        own = self._context.members.address if host in ANY_ADDRESS else host
        shown = f"[{own}]" if ":" in own else own
        earlier = self._context.attempt.endpoint()
        endpoint = Endpoint(
            url=f"{scheme}://{shown}:{port}/v1",
            host=socket.gethostname(),
            address=own,
            port=port,
            model=self._state.model_name,
            models=tuple(self._config.models),
            key_file=serve.api_key_file or str(self._context.attempt.run.key_file),
            tls=bool(serve.tls_cert),
            serving_since=earlier.serving_since if earlier else time.time(),
        )
        # Clients wait for the endpoint file. From then on the folder may be deleted.
        self._context.attempt.run.publish_url(endpoint.url)
        write_json(self._context.attempt.endpoint_file, endpoint)
        self.phase = "serving"
        log.info("serving at %s", endpoint.url)

    def drain(self) -> None:
        self.phase = "draining"
        self._draining.set()

    @property
    def stopped_outcome(self) -> Outcome:
        return Outcome(exit_code=0, message="stopped")

    @property
    def overdue_outcome(self) -> Outcome:
        return Outcome(exit_code=0, message="the walltime ended before all requests had finished")

    @property
    def request_p95_s(self) -> float:
        return self._frontends.total().seconds.quantile(DURATION_QUANTILE)

    def extend_status(self, status: Status) -> Status:
        """Add traffic, loads, models, the next job and notices."""
        return self._state.extend_status(status)

    def _view(self) -> RunView:
        """Return the view of the job that frontends receive."""
        return self._state.view(draining=self._draining.is_set())
