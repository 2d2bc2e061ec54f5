"""State of an endpoint, as its frontends and its status file show it."""

import asyncio
import time
from collections.abc import Iterable

from msgspec.structs import replace

from hpc_dynamo.defects import COUNTS
from hpc_dynamo.engines import rank_notes
from hpc_dynamo.engines.http_paths import is_inference
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.head.telemetry.exposition import ModelMetrics, exposition
from hpc_dynamo.head.workloads.frontends import FrontendTotals
from hpc_dynamo.head.workloads.workload import HeadContext, ModelRoute
from hpc_dynamo.messages import (
    ModelStatus,
    Status,
    Successor,
    Traffic,
    WorkerLoad,
    WorkerReport,
    WorkerState,
    max_context_tokens,
)
from hpc_dynamo.router import ModelAvailability, RunView

FAILED = ("broken", "500", "502", "503", "504")  # results that count as failed requests


class EndpointState:
    """Collects what routers, workers and frontends report."""

    def __init__(self, context: HeadContext, frontends: FrontendTotals) -> None:
        self._context, self._frontends = context, frontends
        self._traffic = dict[str, Traffic]()  # by model
        self._started_at = time.time()

    @property
    def model_name(self) -> str:
        """Name of the model, or of the first one. It may be known to the engines only."""
        config = self._context.config
        own = next(iter(config.models), config.served_name)
        return own or next(iter(self.view(draining=False).names), "")

    def view(self, *, draining: bool) -> RunView:
        """Return the view of the job that frontends receive."""
        loads = self._context.loads
        workers = tuple(w.without_operations for w in self._context.members.in_order())
        self._traffic = {m: route.router.traffic() for m, route in self._context.routes.items()}
        return RunView(
            models={
                model: self._availability(model, route)
                for model, route in self._context.routes.items()
            },
            draining=draining,
            successor=self._successor,
            workers=workers,
            loads=loads,
            started_at=self._started_at,
            metrics=self._exposition(loads, workers),
        )

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
            notices=(*self._frontends.notices(), *rank_notes(self._context.config)),
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
            aliases=_aliases(route),
            operations=tuple(dict.fromkeys(o for w in ready for o in w.operations)),
        )

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
        defects = {"head": COUNTS.total(), "frontends": rest.defects}
        planner = self._context.planner_status()
        return exposition(models, rest, loads, workers, planner, tasks, defects)


def _aliases(route: ModelRoute) -> dict[str, str]:
    """Map the full hub id to the served name, which is its last part."""
    alias, name = route.config.model.alias, route.config.served_name
    return {alias: name} if alias and name and alias != name else {}


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
