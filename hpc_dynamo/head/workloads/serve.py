"""Workload of an endpoint: frontend processes, their view of the job, and the drain."""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from hpc_dynamo.backoff import RestartLimit
from hpc_dynamo.bootstrap.address import address_for_clients
from hpc_dynamo.engines.http_paths import is_inference
from hpc_dynamo.engines.root_cause import root_cause
from hpc_dynamo.errors import EngineError
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.head.telemetry.exposition import ModelMetrics, exposition
from hpc_dynamo.head.workloads.endpoint_socket import EndpointSocket
from hpc_dynamo.head.workloads.frontends import FrontendTotals
from hpc_dynamo.head.workloads.sleep_mode import SleepController
from hpc_dynamo.head.workloads.workload import HeadContext, ModelRoute
from hpc_dynamo.launch.walltime import DURATION_QUANTILE
from hpc_dynamo.messages import (
    Endpoint,
    ModelStatus,
    Outcome,
    Status,
    Successor,
    Traffic,
    WorkerLoad,
    WorkerReport,
    WorkerState,
    max_context_tokens,
)
from hpc_dynamo.process.child import Child, clean_environment
from hpc_dynamo.process.node_folder import private_node_folder
from hpc_dynamo.router import ModelAvailability, RouterServer, RunView
from hpc_dynamo.run import write_json

PORT_WAIT_S, PORT_POLL_S = 15.0, 0.1  # for frontends of an earlier head to close the port
STOP_TIMEOUT_S = 5.0  # for a frontend process to end its streams
MAX_RESTARTS, RESTART_WINDOW_S = 5, 600.0  # limit for one frontend process
CORES_PER_FRONTEND = 8
MAX_DEFAULT_FRONTENDS = 4
ANY_ADDRESS = ("0.0.0.0", "::")
FAILED = ("broken", "500", "502", "503", "504")  # results that count as failed requests

log = logging.getLogger(__name__)


class ServeWorkload:
    """An OpenAI endpoint, see Workload."""

    def __init__(self, context: HeadContext) -> None:
        self._context, self._config = context, context.config
        self._draining, self._frontends = asyncio.Event(), FrontendTotals()
        self._sleep_controller = SleepController(context)
        self._traffic = dict[str, Traffic]()  # by model
        self._started_at = time.time()
        self.phase = "loading"

    async def run(self) -> Outcome:
        """Serve until drained. Raises EngineError if the port is in use or a frontend fails."""
        host = self._config.serve.host or address_for_clients(self._context.members.address)
        with private_node_folder() as folder:
            with await self._open_port(host) as port:
                await self._serve(Path(folder) / "router", host, port)
        return Outcome(exit_code=0, message="the walltime ended; the endpoint was drained first")

    async def _open_port(self, host: str) -> EndpointSocket:
        """Open the port: after a restart of the head that of before, which its frontends close."""
        attempt, port = self._context.attempt, self._config.serve.port
        shared = self._count > 1 or self._config.planner.job_handover
        earlier, began = attempt.endpoint(), time.monotonic()
        if earlier and earlier.host == socket.gethostname():
            port = earlier.port
        while True:
            try:
                kept = self._context.endpoint_socket
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
                    group.create_task(self._keep_frontend(index, router_socket, port))
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

    async def _keep_frontend(self, index: int, router_socket: Path, port: EndpointSocket) -> None:
        """Run a frontend process; restart it when it exits. Raises EngineError at the limit."""
        arguments = (str(self._context.attempt.path), str(index), str(router_socket))
        argv = (sys.executable, "-m", "hpc_dynamo.frontend", *arguments)
        log_file = self._context.attempt.frontend_log(index)
        limit, left = RestartLimit(MAX_RESTARTS, RESTART_WINDOW_S), 1
        while left:
            with port.open() as listening:
                handle = listening.fileno()
                command, environment = (*argv, str(handle)), clean_environment({})
                child = await Child.start(command, environment, log_file, STOP_TIMEOUT_S, (handle,))
            try:
                code = await self._wait_for_exit(index, child)
            finally:
                await child.stop()
            limit.succeeded()
            left = limit.failed(time.monotonic())
            log.error("frontend %d ended with code %d; %d restarts left", index, code, left)
            if left:
                await asyncio.sleep(limit.delay_s)
        cause = root_cause(log_file.read_text(errors="replace"))
        minutes = RESTART_WINDOW_S / 60
        what = f"frontend {index} ended {MAX_RESTARTS + 1} times in {minutes:.0f} min: {cause}"
        raise EngineError(what, log=log_file)

    async def _wait_for_exit(self, index: int, child: Child) -> int:
        """Return the exit code of a frontend process; kill one that hangs."""
        timeout_s = self._config.cluster.heartbeat_timeout_s
        exited = asyncio.create_task(child.wait())
        silent = asyncio.create_task(self._frontends.wait_until_silent(index, timeout_s))
        try:
            await asyncio.wait({exited, silent}, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                log.error("frontend %d hangs: silent for %.0f s; killing it", index, timeout_s)
                await child.kill()
            return await exited
        finally:
            exited.cancel()
            silent.cancel()

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
            model=self._name,
            models=tuple(self._config.models),
            key_file=serve.api_key_file or str(self._context.attempt.run.key_file),
            tls=bool(serve.tls_cert),
            serving_since=earlier.serving_since if earlier else time.time(),
        )
        write_json(self._context.attempt.endpoint_file, endpoint)
        self._context.attempt.run.publish_url(endpoint.url)
        self.phase = "serving"
        log.info("serving at %s", endpoint.url)

    @property
    def _name(self) -> str:
        """Name of the model, or of the first one. It may be known to the engines only."""
        own = next(iter(self._config.models), self._config.served_name)
        return own or next(iter(self._view().names), "")

    def _view(self) -> RunView:
        """Return the view of the job that frontends receive."""
        loads = self._context.loads
        workers = tuple(w.without_operations for w in self._context.members.in_order())
        self._traffic = {m: route.router.traffic() for m, route in self._context.routes.items()}
        return RunView(
            models={
                model: self._availability(model, route)
                for model, route in self._context.routes.items()
            },
            draining=self._draining.is_set(),
            successor=self._successor,
            workers=workers,
            loads=loads,
            started_at=self._started_at,
            metrics=self._exposition(loads, workers),
        )

    def _availability(self, model: str, route: ModelRoute) -> ModelAvailability:
        workers = [w for w in self._context.members.workers.values() if w.model == model]
        ready = [w for w in workers if w.state is WorkerState.ready]
        contexts = [w.context_tokens for w in ready if w.context_tokens]
        return ModelAvailability(
            ready=route.router.has_roles(route.roles),
            failure=route.router.failure,
            names=tuple(dict.fromkeys(name for w in ready for name in w.models)),
            adapters={name: base for w in ready for name, base in w.adapters.items()},
            context_tokens=min(contexts, default=0),
            max_context_tokens=max_context_tokens(ready),
            aliases=self._aliases(model),
            operations=tuple(dict.fromkeys(o for w in ready for o in w.operations)),
        )

    def _aliases(self, model: str) -> dict[str, str]:
        """Map the full hub id to the served name, which is its last part."""
        config = self._config.for_model(model)
        alias, name = config.model.alias, config.served_name
        return {alias: name} if alias and name and alias != name else {}

    @property
    def _successor(self) -> Successor | None:
        return self._context.handover.successor if self._context.handover else None

    def _exposition(self, loads: tuple[WorkerLoad, ...], workers: tuple[WorkerReport, ...]) -> str:
        stats = self._frontends.by_model()
        models = {
            model: ModelMetrics(
                stats.get(model, FrontendStats()), self._traffic[model], route.router
            )
            for model, route in self._context.routes.items()
        }
        rest = stats.get("", FrontendStats())
        tasks = {"head": len(asyncio.all_tasks()), "frontends": rest.tasks}
        return exposition(models, rest, loads, workers, self._context.planner_status(), tasks)

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
        stats = self._frontends.by_model()
        traffic = {
            m: replace(t, failed=failed_requests(stats.get(m))) for m, t in self._traffic.items()
        }
        total = replace(_sum(traffic.values()), failed=failed_requests(self._frontends.total()))
        return replace(
            status,
            loads=self._context.loads,
            traffic=total,
            by_model={
                m: ModelStatus(traffic=t, lost=self._context.routes[m].router.failure)
                for m, t in traffic.items()
                if m
            },
            successor=self._successor,
            notices=self._frontends.notices(),
        )


def _sum(traffic: Iterable[Traffic]) -> Traffic:
    """Return the traffic of all models."""
    models = tuple(traffic)
    sums = {name: sum(getattr(t, name) for t in models) for name in Traffic.__struct_fields__}
    return Traffic(**sums)


def failed_requests(stats: FrontendStats | None) -> int:
    """Return the number of failed requests to a model. A 503 of /ready is not a failure."""
    answers = stats.responses.items() if stats else ()
    results = ((key.rpartition(" "), count) for key, count in answers)
    return sum(n for (path, _, result), n in results if result in FAILED and is_inference(path))


def default_frontend_count() -> int:
    """Return the number of frontend processes for the cores of this node."""
    cores = len(os.sched_getaffinity(0))
    return min(MAX_DEFAULT_FRONTENDS, max(1, cores // CORES_PER_FRONTEND))
