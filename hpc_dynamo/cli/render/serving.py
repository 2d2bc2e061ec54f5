"""Load of a serving run: a table of its workers, and one line for each part of its status."""

from rich.markup import escape

from hpc_dynamo.cli.render.table import HOST_WIDTH, Column, ResponsiveTable
from hpc_dynamo.messages import (
    Endpoint,
    ExtraJobStatus,
    ModelStatus,
    PlannerStatus,
    Quantiles,
    Status,
    Successor,
    Traffic,
    WorkerLoad,
    WorkerReport,
)


def load_table(status: Status, model: str = "") -> ResponsiveTable:
    """Return the load of each worker of a model. Latencies (p50/p99) are the engines' own."""
    figures = ("active", "run", "wait", "KV", "hits", "TTFT ms", "ITL ms", "served")
    names = ("rank", "role", Column("node", fold=HOST_WIDTH), "state")
    table = ResponsiveTable(*names, *(Column(name, right=True) for name in figures), plain=True)
    known = {load.rank: load for load in status.loads}
    for worker in (w for w in status.workers if w.model == model):
        load = known.get(worker.rank)
        cells = _load_cells(load) if load else ["-"] * len(figures)
        table.add_row(*map(escape, (*_worker_cells(worker), *cells)))
    return table


def _worker_cells(worker: WorkerReport) -> tuple[str, str, str, str]:
    return str(worker.rank), str(worker.role), worker.host, str(worker.state)


def _load_cells(load: WorkerLoad) -> list[str]:
    counts = [str(n) for n in (load.active, load.running, load.waiting)]
    shares = [f"{share:.0%}" for share in (load.kv_usage, load.cache_hit_rate)]
    return [*counts, *shares, _ms(load.ttft), _ms(load.itl), str(load.served)]


def _ms(q: Quantiles) -> str:
    return f"{1000 * q.p50:.0f}/{1000 * q.p99:.0f}" if q.count else "-"


def traffic_line(t: Traffic) -> str:
    """Return the request counts of the run in one line."""
    return (
        f"{t.requests} requests, {t.rate_hz:.1f}/s, {t.active} active, {t.queued} queued, "
        f"{t.refused} refused, {t.failed} failed"
    )


def model_line(model: str, known: ModelStatus | None) -> str:
    """Return the state of one of several models."""
    if known is None:
        return f"model {model}"
    state = f"refused, {known.lost}" if known.lost else traffic_line(known.traffic)
    return f"model {model}: {state}"


def models_text(endpoint: Endpoint) -> str:
    return f"models {', '.join(endpoint.models)}" if endpoint.models else f"model {endpoint.model}"


def planner_line(p: PlannerStatus) -> str:
    """Return the workers that the planner wants, and its role changes so far."""
    changing = f", changing {', '.join(map(str, p.changing))}" if p.changing else ""
    shortfall = f"; {p.shortfall}" if p.shortfall else ""
    return (
        f"planner: wants {p.prefill} prefill and {p.decode} decode for {p.rate_hz:.1f}/s"
        f"{changing}; {p.role_changes} role changes, {p.failed_role_changes} failed; "
        f"{p.reason}{shortfall}"
    )


def extra_job_line(job: ExtraJobStatus) -> str:
    """Return the state of an extra job, and what it waits for."""
    ranks, name = ", ".join(map(str, job.ranks)), job.job_id or "being submitted"
    detail = f": {job.detail}" if job.detail else ""
    return f"extra job {name} {job.state}, {job.nodes} node(s), {job.role} {ranks}{detail}"


def successor_line(s: Successor) -> str:
    """Return the progress of the handover to the next job."""
    if not s.attempt:
        return f"no next job yet: {s.detail}"
    where = f" at {s.url}" if s.ready else ""
    return f"handing over to attempt {s.attempt}, job {s.job_id}{where}: {s.detail}"
