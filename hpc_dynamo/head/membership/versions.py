"""Prefill and decode workers of engine versions that refuse each other's KV transfers.

Every request of such a pair would fail, or be computed twice. One version is kept: one that has
workers of both roles, then that of most workers, then the one that was ready first. Workers of
another version get no requests. They wait until all workers of their model have reported a version,
since the kept version may change until then. Afterwards they are lost.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines import adapter_of
from hpc_dynamo.messages import WorkerReport, WorkerState
from hpc_dynamo.topology import Worker

KNOWN = (WorkerState.ready, WorkerState.lost, WorkerState.stopped)


class VersionCheck:
    """Compares the versions of the prefill and decode workers of each model."""

    def __init__(self, config: Config) -> None:
        self._engines = {
            model: own.engine.name
            for model, own in config.by_model.items()
            if adapter_of(own.engine).needs_equal_versions(own.engine)
        }
        self._order = dict[tuple[str, str], int]()  # order of readiness, by model and version
        self._waiting = dict[int, WorkerReport]()  # ready, but refused for now; by rank

    def conflicts(self, reports: Iterable[WorkerReport]) -> dict[int, str]:
        """Return the ready workers that the others of their model refuse, with the reason.

        A worker of an unknown version is refused by none.
        """
        by_model = defaultdict[str, dict[str, list[WorkerReport]]](dict)
        for report in filter(_transfers, reports):
            if report.model in self._engines:
                by_model[report.model].setdefault(report.version, []).append(report)
                self._order.setdefault((report.model, report.version), len(self._order))
        found = dict[int, str]()
        for model, versions in by_model.items():
            kept = versions.pop(max(versions, key=lambda v: self._rank(model, versions[v])))
            for report in (each for refused in versions.values() for each in refused):
                found[report.rank] = _reason(self._engines[model], report, kept[0])
        return found

    def _rank(self, model: str, workers: list[WorkerReport]) -> tuple[int, int, int]:
        roles = len({worker.role for worker in workers})
        return roles, len(workers), -self._order[model, workers[0].version]

    def changes(
        self, report: WorkerReport, workers: Mapping[int, WorkerReport], placed: Iterable[Worker]
    ) -> list[WorkerReport]:
        """Return the reports to apply after a worker's report: its own first, then those of workers
        that are refused from now on, or no longer.

        `workers` are the reports that were applied before, `placed` all workers of all models.
        """
        models = {worker.rank: worker.model for worker in placed}
        kept = models.keys() - {report.rank}
        self._waiting = {rank: each for rank, each in self._waiting.items() if rank in kept}
        reports = {**workers, **self._waiting, report.rank: report}
        reasons = self.conflicts(reports.values())
        ranks = [rank for rank, model in models.items() if model == report.model]
        final = all(rank in reports and reports[rank].state in KNOWN for rank in ranks)
        allowed_again = self._waiting.keys() - reasons.keys()
        refused = reasons.keys() if final else reasons.keys() - self._waiting.keys()
        others = sorted((allowed_again | refused) - {report.rank})
        found = [reports[rank] for rank in (report.rank, *others)]
        return [self._applied(each, reasons.get(each.rank, ""), final=final) for each in found]

    def _applied(self, report: WorkerReport, reason: str, *, final: bool) -> WorkerReport:
        self._waiting.pop(report.rank, None)
        if reason and not final:
            self._waiting[report.rank] = report
        state = WorkerState.lost if final else WorkerState.starting
        return replace(report, state=state, detail=reason) if reason else report


def _reason(engine: str, report: WorkerReport, other: WorkerReport) -> str:
    """Return why a worker cannot work with those of the kept version."""
    one, two = (
        f"{engine} {w.version} of {w.role} worker {w.rank} on {w.host}" for w in (report, other)
    )
    what = f"{one} and {two} refuse each other's KV transfers; "
    return f"{what}try: the same version for all of them (engine.python, engine.container.image)"


def _transfers(report: WorkerReport) -> bool:
    ready = report.state is WorkerState.ready and bool(report.version)
    return ready and report.role is not Role.aggregated
