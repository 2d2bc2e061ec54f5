"""Protocol of a workload (what a job runs), and what a workload is given."""

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hpc_dynamo.config import Config, Role, with_throughput_routing
from hpc_dynamo.engines import engine
from hpc_dynamo.head.scaling.job_handover import JobHandover
from hpc_dynamo.head.telemetry.scrape import MetricsScraper
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import Outcome, PlannerStatus, Status, WorkerLoad, WorkerReport
from hpc_dynamo.router import RequestRouter
from hpc_dynamo.run import Attempt


class WorkerDirectory(Protocol):
    """Workers of a job, by rank; see Membership and ExternalWorkers."""

    @property
    def address(self) -> str: ...

    @property
    def workers(self) -> Mapping[int, WorkerReport]: ...

    def in_order(self) -> tuple[WorkerReport, ...]:
        """Return the reports by rank."""

    async def set_asleep(self, rank: int, asleep: bool) -> None:
        """Expect no progress of a worker while it sleeps."""


@dataclass(frozen=True)
class ModelRoute:
    """One model of a job: its router, and the metrics of its workers."""

    config: Config
    router: RequestRouter
    scraper: MetricsScraper

    @property
    def roles(self) -> tuple[Role, ...]:
        return tuple(role for role, _ in self.config.topology.pools)


def model_routes(config: Config, client: HttpClient) -> dict[str, ModelRoute]:
    """Return a route for each model, by its name (see topology.Worker)."""
    changed, routes = asyncio.Event(), dict[str, ModelRoute]()
    for model, own in config.by_model.items():
        router = RequestRouter.from_config(with_throughput_routing(own), changed)
        scraper = MetricsScraper(router, client, engine(own.engine.name).metrics)
        routes[model] = ModelRoute(own, router, scraper)
    return routes


@dataclass(frozen=True)
class HeadContext:
    """Parts of the head that a workload uses. `client` sends requests to engines.

    `endpoint_socket` is for the endpoint's port, and outlives this head.
    """

    attempt: Attempt
    config: Config
    routes: Mapping[str, ModelRoute]
    members: WorkerDirectory
    client: HttpClient
    planner_status: Callable[[], PlannerStatus | None] = lambda: None
    handover: JobHandover | None = None
    endpoint_socket: socket.socket | None = None

    @property
    def route(self) -> ModelRoute:
        """The route of a job with one model."""
        (route,) = self.routes.values()
        return route

    @property
    def loads(self) -> tuple[WorkerLoad, ...]:
        return tuple(load for route in self.routes.values() for load in route.scraper.loads())


class Workload(Protocol):
    """Task of a job. It runs once, until it is done, drained or cancelled."""

    @property
    def phase(self) -> str:
        """One word for the status."""

    @property
    def stopped_outcome(self) -> Outcome:
        """Outcome if the user stops the run now."""

    @property
    def overdue_outcome(self) -> Outcome:
        """Outcome if the walltime ends before running requests have finished."""

    async def run(self) -> Outcome:
        """Run to the end. Raises HpcDynamoError."""

    @property
    def request_p95_s(self) -> float:
        """Time that 95 % of recent requests did not exceed; 0 before the first."""

    def drain(self) -> None:
        """Start no more requests; `run` returns once running ones have finished."""

    def extend_status(self, status: Status) -> Status:
        """Return the status with the workload's own fields."""
