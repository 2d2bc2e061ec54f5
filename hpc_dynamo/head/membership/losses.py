"""Lost workers: their last report, and the failure of a model that has lost all of a role."""

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines.adapter import roles_can_change
from hpc_dynamo.errors import EngineError
from hpc_dynamo.messages import WorkerReport, WorkerState
from hpc_dynamo.router import RequestRouter
from hpc_dynamo.topology import Worker

GONE = (WorkerState.lost, WorkerState.stopped)  # will not come back

log = logging.getLogger(__name__)


def lost_report(
    before: WorkerReport | None,
    worker: Worker,
    role: Role,
    host: str,
    state: WorkerState,
    detail: str,
    log_file: Path,
) -> WorkerReport:
    """Return the report of a worker whose agent can send none. `before` is its last one."""
    return WorkerReport(
        rank=worker.rank,
        role=role,
        model=worker.model,
        node=worker.node,
        host=host,
        state=state,
        detail="" if state is WorkerState.stopped else detail,
        log=str(log_file),
        start_s=before.start_s if before else 0.0,
    )


def shows_bad_node(last: WorkerReport, workers: Collection[WorkerReport]) -> bool:
    """Return True if all workers of a node are lost with this report, and one of another node is
    ready. So the cause is the node rather than the configuration."""
    here = [w for w in workers if w.node == last.node and w.rank != last.rank]
    if last.state is not WorkerState.lost or any(w.state is not WorkerState.lost for w in here):
        return False
    return any(w.state is WorkerState.ready for w in workers if w.node != last.node)


class ModelFailure:
    """Fails a model once every worker of a role is permanently lost, and the job once all models
    have failed.

    `routers` are by model. `fail_job` is called at most once for each model.
    """

    def __init__(
        self,
        config: Config,
        routers: Mapping[str, RequestRouter],
        fail_job: Callable[[EngineError], None],
    ) -> None:
        self._roles_can_change = roles_can_change(config)
        self._routers, self._fail_job = routers, fail_job

    def check(
        self,
        last: WorkerReport,
        same_role: Collection[WorkerReport | None],
        workers: Collection[WorkerReport],
    ) -> None:
        """Check after a report. `same_role` are the reports of the workers with its model and role;
        None without a report yet. `workers` are all reports."""
        if self._roles_can_change and any(w.state not in GONE for w in workers):
            return  # the planner gives the role another worker
        if same_role and all(w and w.state in GONE for w in same_role):
            model = f" of model {last.model}" if last.model else ""
            cause = last.detail or f"stopped on {last.host}"
            self._fail(last.model, f"no {last.role} worker{model} is left; the last one: {cause}")

    def _fail(self, model: str, error: str) -> None:
        router = self._routers[model]
        if all(other.failure for other in self._routers.values() if other is not router):
            self._fail_job(EngineError(error))
        elif not router.failure:
            log.error("%s", error)
            router.fail(error)
