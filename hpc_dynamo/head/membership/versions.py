"""Prefill and decode workers of engine versions that refuse each other's KV transfers.

Every request of such a pair would fail, or be computed twice. The version that was ready first is
kept; workers of another version get no requests.
"""

from collections.abc import Iterable

from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines import adapter_of
from hpc_dynamo.messages import WorkerReport, WorkerState


class VersionCheck:
    """Compares the versions of the prefill and decode workers of each model."""

    def __init__(self, config: Config) -> None:
        self._engines = {
            model: own.engine.name
            for model, own in config.by_model.items()
            if adapter_of(own.engine).needs_equal_versions(own.engine)
        }

    def conflict(self, report: WorkerReport, workers: Iterable[WorkerReport]) -> str:
        """Return why a worker that is ready cannot work with others of its model; empty if it can.

        An unknown version conflicts with none.
        """
        if report.model not in self._engines or not _transfers(report):
            return ""
        for other in workers:
            same_model = other.model == report.model and other.rank != report.rank
            if same_model and _transfers(other) and other.version != report.version:
                name = self._engines[report.model]
                return (
                    f"{name} {report.version} of {report.role} worker {report.rank} on "
                    f"{report.host} and {name} {other.version} of {other.role} worker "
                    f"{other.rank} on {other.host} refuse each other's KV transfers; "
                    "try: the same version for all of them (engine.python, engine.container.image)"
                )
        return ""


def _transfers(report: WorkerReport) -> bool:
    ready = report.state is WorkerState.ready and bool(report.version)
    return ready and report.role is not Role.aggregated
