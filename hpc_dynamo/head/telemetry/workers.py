"""Metrics of workers, from the router's leases and the last reading of each engine."""

from collections.abc import Iterable

from prometheus_client.core import Metric

from hpc_dynamo.head.telemetry import families
from hpc_dynamo.messages import WorkerLoad, WorkerReport, WorkerState


def worker_metrics(
    loads: Iterable[WorkerLoad], workers: Iterable[WorkerReport]
) -> Iterable[Metric]:
    """Yield the state of all workers and the load of those that are ready."""
    workers = list(workers)
    labels = {worker.rank: _labels(worker) for worker in workers}
    ready = {worker.rank: worker.state is WorkerState.ready for worker in workers}
    yield families.WORKER_READY.values((labels[rank], ready[rank]) for rank in labels)
    yield families.WORKER_HANGS.values((_labels(worker), worker.hangs) for worker in workers)
    known = [(labels[load.rank], load) for load in loads if load.rank in labels]
    yield families.WORKER_ACTIVE.values((row, load.active) for row, load in known)
    yield families.WORKER_RUNNING.values((row, load.running) for row, load in known)
    yield families.WORKER_WAITING.values((row, load.waiting) for row, load in known)
    yield families.WORKER_KV_USAGE.values((row, load.kv_usage) for row, load in known)
    yield families.WORKER_TRANSFER_FAILURES.values(
        (row, load.kv_transfer_failures) for row, load in known
    )
    yield families.WORKER_HITS.values((row, load.cache_hit_rate) for row, load in known)


def _labels(worker: WorkerReport) -> list[str]:
    model = [worker.model] if worker.model else []
    return [str(worker.rank), str(worker.role), worker.host, *model]
