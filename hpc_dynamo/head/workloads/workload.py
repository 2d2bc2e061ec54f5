"""What a job is for, as the head sees it: a batch to finish, or an endpoint to keep up."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hpc_dynamo.config import Config, Role, with_throughput_routing
from hpc_dynamo.engines import engine
from hpc_dynamo.head.scaling.job_handover import JobHandover
from hpc_dynamo.head.telemetry.scrape import MetricsScraper
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import Outcome, PlannerStatus, Status, WorkerLoad, WorkerReport
from hpc_dynamo.router import Router
from hpc_dynamo.run import Attempt


class WorkerDirectory(Protocol):
    """Who is there; see membership.Membership."""

    @property
    def address(self) -> str: ...

    @property
    def workers(self) -> Mapping[int, WorkerReport]: ...

    def in_order(self) -> tuple[WorkerReport, ...]: ...


@dataclass(frozen=True)
class ModelRoute:
    """One model's part of a job: who routes its requests, and what its workers say."""

    config: Config
    router: Router
    scraper: MetricsScraper

    @property
    def roles(self) -> tuple[Role, ...]:
        return tuple(role for role, _ in self.config.topology.pools)


def model_routes(config: Config, client: HttpClient) -> dict[str, ModelRoute]:
    """By model, see topology.Worker."""
    news, found = asyncio.Event(), dict[str, ModelRoute]()
    for model, own in config.by_model.items():
        router = Router.from_config(with_throughput_routing(own), news)
        scraper = MetricsScraper(router, client, engine(own.engine.name).metrics)
        found[model] = ModelRoute(own, router, scraper)
    return found


@dataclass(frozen=True)
class HeadContext:
    """What any work is made of. `client` speaks to engines."""

    attempt: Attempt
    config: Config
    routes: Mapping[str, ModelRoute]
    members: WorkerDirectory
    client: HttpClient
    planner_status: Callable[[], PlannerStatus | None] = lambda: None
    handover: JobHandover | None = None

    @property
    def route(self) -> ModelRoute:
        """Of a job of one model."""
        (lane,) = self.routes.values()
        return lane

    @property
    def loads(self) -> tuple[WorkerLoad, ...]:
        return tuple(load for lane in self.routes.values() for load in lane.scraper.loads())


class Workload(Protocol):
    """Runs once, until it is done, drained or cancelled."""

    @property
    def phase(self) -> str:
        """One word for the status."""

    @property
    def stopped_outcome(self) -> Outcome:
        """How it ends when its user ends it."""

    @property
    def overdue_outcome(self) -> Outcome:
        """How it ends when the walltime does not wait for what is under way."""

    async def run(self) -> Outcome: ...

    @property
    def likely_s(self) -> float:
        """What a request will hardly exceed, from those seen so far; 0 before any."""

    def drain(self) -> None:
        """Begin nothing more; what is under way may end, and then `run`."""

    def extend_status(self, status: Status) -> Status:
        """The status with what this work knows."""
