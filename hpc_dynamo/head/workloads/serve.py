"""An endpoint, from the first ready workers to the drain: frontend processes and their view."""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace

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
)
from hpc_dynamo.process.child import Child, clean_environment
from hpc_dynamo.router import ModelAvailability, RouterServer, RunView
from hpc_dynamo.run import write_json

STOP_S = 5.0  # for a frontend process to end its streams in order
RESTARTS = 5  # of a frontend process, before the job is given up
BACKOFF_S = 1.0
CORES_EACH = 8  # of the node's, for each frontend process where no number is asked for
MOST = 4
ANY = ("0.0.0.0", "::")
FAILED = ("broken", "500", "502", "503", "504")  # answers that count as failures of ours

log = logging.getLogger(__name__)


class ServeWorkload:
    """See head.work.Work."""

    def __init__(self, job: HeadContext) -> None:
        self._job, self._config = job, job.config
        self._draining, self._frontends = asyncio.Event(), FrontendTotals()
        self._sleepers = SleepController(job)
        self._traffic = dict[str, Traffic]()  # by model
        self._started_at = time.time()
        self.phase = "loading"

    async def run(self) -> Outcome:
        serve = self._config.serve
        host = serve.host or address_for_clients(self._job.members.address)
        with TemporaryDirectory(prefix="hpc-dynamo-") as folder:
            shared = self._count > 1 or self._config.planner.job_handover
            attempt = self._job.attempt
            with EndpointSocket(host, serve.port, shared=shared, attempt=attempt) as listener:
                await self._serve(Path(folder) / "router", host, listener)
        return Outcome(exit_code=0, message="the walltime ended; the endpoint was drained first")

    @property
    def _count(self) -> int:
        """Return the number of frontend processes."""
        return self._config.serve.frontend_processes or default_frontend_count()

    async def _serve(self, link: Path, host: str, listener: EndpointSocket) -> None:
        lanes, heard = self._job.routes.values(), self._frontends
        routers = {model: lane.router for model, lane in self._job.routes.items()}
        ends = heard.update, heard.frontend_exited, self._sleepers.set_asleep
        async with RouterServer(routers, link, self._view, *ends) as server:
            async with asyncio.TaskGroup() as group:
                frontends = [
                    group.create_task(self._keep(index, link, listener), name=f"frontend-{index}")
                    for index in range(self._count)
                ]
                try:
                    for lane in lanes:
                        await lane.router.wait_for_roles(lane.roles)
                    await heard.wait_for_first_report()
                    server.push_view()  # that it is ready, before anybody else is told
                    self._announce(host, listener.port)
                    await self._draining.wait()
                    server.push_view()
                    for lane in lanes:
                        await lane.router.wait_idle()
                    await heard.wait_for_forwarded()
                finally:
                    listener.close()
                    server.close_clients()  # what is still under way gets its last words
                    for task in frontends:
                        task.cancel()

    async def _keep(self, index: int, link: Path, listener: EndpointSocket) -> None:
        """Start a frontend process, again when it dies."""
        words = (str(self._job.attempt.path), str(index), str(link))
        argv = (sys.executable, "-m", "hpc_dynamo.frontend", *words)
        file = self._job.attempt.frontend_log(index)
        for left in reversed(range(RESTARTS + 1)):
            with listener.open() as opened:
                argv_now, handed = (*argv, str(opened.fileno())), (opened.fileno(),)
                child = await Child.start(argv_now, clean_environment({}), file, STOP_S, handed)
            try:
                code = await child.wait()
            finally:
                await child.stop()
            log.error("frontend %d ended with code %d; %d restarts left", index, code, left)
            await asyncio.sleep(BACKOFF_S)
        why = root_cause(file.read_text(errors="replace"))
        raise EngineError(f"frontend {index} ended {RESTARTS + 1} times: {why}", log=file)

    def _announce(self, host: str, port: int) -> None:
        serve, scheme = self._config.serve, "https" if self._config.serve.tls_cert else "http"
        own = self._job.members.address if host in ANY else host
        shown = f"[{own}]" if ":" in own else own
        endpoint = Endpoint(
            url=f"{scheme}://{shown}:{port}/v1",
            host=socket.gethostname(),
            address=own,
            port=port,
            model=self._name,
            models=tuple(self._config.models),
            key_file=serve.api_key_file or str(self._job.attempt.run.key_file),
            tls=bool(serve.tls_cert),
        )
        write_json(self._job.attempt.endpoint_file, endpoint)
        self._job.attempt.run.publish_url(endpoint.url)
        self.phase = "serving"
        log.info("serving at %s", endpoint.url)

    @property
    def _name(self) -> str:
        """Of our model, or the first of ours; engines may be all who know it."""
        own = next(iter(self._config.models), self._config.served_name)
        return own or next(iter(self._view().names), "")

    # What frontends are shown.

    def _view(self) -> RunView:
        loads = self._job.loads
        workers = tuple(
            self._sleepers.with_sleep_state(w.without_operations)
            for w in self._job.members.in_order()
        )
        self._traffic = {m: lane.router.traffic() for m, lane in self._job.routes.items()}
        return RunView(
            models={model: self._offer(model, lane) for model, lane in self._job.routes.items()},
            draining=self._draining.is_set(),
            successor=self._successor,
            workers=workers,
            loads=loads,
            started_at=self._started_at,
            metrics=self._exposition(loads, workers),
        )

    def _offer(self, model: str, lane: ModelRoute) -> ModelAvailability:
        here = [w for w in self._job.members.workers.values() if w.model == model]
        ready = [w for w in here if w.state is WorkerState.ready]
        contexts = [w.context_tokens for w in ready if w.context_tokens]
        return ModelAvailability(
            ready=lane.router.has_roles(lane.roles),
            failure=lane.router.failure,
            names=tuple(dict.fromkeys(name for w in ready for name in w.models)),
            adapters={name: base for w in ready for name, base in w.adapters.items()},
            context_tokens=min(contexts, default=0),
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
        return self._job.handover.successor if self._job.handover else None

    def _exposition(self, loads: tuple[WorkerLoad, ...], workers: tuple[WorkerReport, ...]) -> str:
        stats = self._frontends.by_model()
        parts = {
            model: ModelMetrics(
                stats.get(model, FrontendStats()), self._traffic[model], lane.router
            )
            for model, lane in self._job.routes.items()
        }
        rest = stats.get("", FrontendStats())
        return exposition(parts, rest, loads, workers, self._job.planner_status())

    # For the head.

    def drain(self) -> None:
        self.phase = "draining"
        self._draining.set()

    @property
    def stopped_outcome(self) -> Outcome:
        return Outcome(exit_code=0, message="stopped")

    @property
    def overdue_outcome(self) -> Outcome:
        return Outcome(exit_code=0, message="the walltime ended with requests under way")

    @property
    def likely_s(self) -> float:
        return self._frontends.total().seconds.quantile(DURATION_QUANTILE)

    def extend_status(self, status: Status) -> Status:
        stats = self._frontends.by_model()
        traffic = {
            m: replace(t, failed=failed_requests(stats.get(m))) for m, t in self._traffic.items()
        }
        total = replace(
            _together(traffic.values()), failed=failed_requests(self._frontends.total())
        )
        return replace(
            status,
            loads=self._job.loads,
            traffic=total,
            by_model={
                m: ModelStatus(traffic=t, lost=self._job.routes[m].router.failure)
                for m, t in traffic.items()
                if m
            },
            successor=self._successor,
            notices=self._frontends.notices(),
        )


def _together(parts: Iterable[Traffic]) -> Traffic:
    """Of all models."""
    several = tuple(parts)
    sums = {name: sum(getattr(t, name) for t in several) for name in Traffic.__struct_fields__}
    return Traffic(**sums)


def failed_requests(stats: FrontendStats | None) -> int:
    """Count requests to the model that failed. A 503 of /ready is an answer, not a failure."""
    answers = stats.responses.items() if stats else ()
    ended = ((key.rpartition(" "), count) for key, count in answers)
    return sum(n for (path, _, how), n in ended if how in FAILED and is_inference(path))


def default_frontend_count() -> int:
    return min(MOST, max(1, len(os.sched_getaffinity(0)) // CORES_EACH))
