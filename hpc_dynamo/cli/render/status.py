"""Status of an attempt: its job, its workers, its figures and its result."""

import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hpc_dynamo.cli.render import serving
from hpc_dynamo.cli.render.progress import duration, progress_line
from hpc_dynamo.cli.render.table import HOST_WIDTH, Column, ResponsiveTable
from hpc_dynamo.config import Launcher
from hpc_dynamo.launch import JobState
from hpc_dynamo.messages import BatchSummary, Outcome, Quantiles, Status
from hpc_dynamo.run import Attempt

STALE_S = 15.0  # the head has probably died if its status is older


def started_line(attempt: Attempt, launcher: Launcher) -> str:
    job = attempt.job()
    what = f"{launcher} job {job.job_id}" if job else str(launcher)
    return f"attempt {attempt.number} is {what}; run folder {attempt.run.path}"


def worker_table(status: Status) -> ResponsiveTable:
    """Return role, node, state and start time of each worker."""
    table = ResponsiveTable(
        "rank", "role", Column("node", fold=HOST_WIDTH), "state", Column("start", right=True)
    )
    for w in status.workers:
        start = f"{w.start_s:.1f} s" if w.start_s else "-"
        table.add_row(*map(escape, (str(w.rank), str(w.role), w.host, str(w.state), start)))
    return table


def status(attempt: Attempt, job: tuple[JobState, str] | None) -> RenderableType:
    """Return the status of an attempt. Totals come before the tables, which may be long."""
    # The outcome of a pending job is that of its execution before Slurm requeued it.
    waits = job is not None and job[0] is JobState.pending
    current, outcome = attempt.status(), None if waits else attempt.outcome()
    rows: list[RenderableType] = [_head(attempt, job, outcome), *_addresses(attempt, outcome)]
    if current:
        rows += [] if outcome else [_phase(current)]
        rows += [Text(f"notice: {notice}") for notice in current.notices]
        rows += _figures(attempt, current, ended=outcome is not None)
    if outcome and outcome.summary:
        rows.append(summary(attempt, outcome.summary))
    return Group(*rows)


def _head(attempt: Attempt, job: tuple[JobState, str] | None, outcome: Outcome | None) -> Text:
    state, detail = job or (JobState.unknown, "never submitted")
    line = (
        ended_line(attempt, outcome) if outcome else f"attempt {attempt.number}: {state} ({detail})"
    )
    return Text(f"{line}\nrun folder: {attempt.run.path}")


def ended_line(attempt: Attempt, outcome: Outcome) -> str:
    """Return the result of an ended attempt in one line."""
    return f"attempt {attempt.number} ended: {outcome.message or 'all done'}"


def _addresses(attempt: Attempt, outcome: Outcome | None) -> Iterator[Text]:
    """Yield the nodes of the attempt and its endpoint."""
    if roster := attempt.roster():
        hosts = ", ".join(f"{n.host} {n.address}" for n in roster.nodes)
        yield Text(f"roster by {roster.method} in {roster.seconds:.3f} s: {hosts}")
    endpoint = attempt.endpoint()
    if endpoint and not outcome:
        yield Text(f"endpoint {endpoint.url}, {serving.models_text(endpoint)}")


def _phase(current: Status) -> Text:
    age = time.time() - current.at
    stale = f" (last update {age:.0f} s ago)" if age > STALE_S else ""
    left = ""
    if current.ends_at:
        left = f", {duration(max(current.ends_at - time.time(), 0))} of walltime left"
    return Text(f"{current.phase}{left}{stale}")


def _figures(attempt: Attempt, current: Status, *, ended: bool) -> Iterator[RenderableType]:
    """Yield the load of a serving run, or the progress of a batch."""
    if current.traffic:
        yield Text(serving.traffic_line(current.traffic))
    elif current.progress.total and not ended:
        yield Text(progress_line(current.progress))
    if current.planner:
        yield Text(serving.planner_line(current.planner))
    yield from (Text(serving.extra_job_line(job)) for job in current.extra_jobs)
    if current.node_hours:
        yield Text(f"extra jobs have used {current.node_hours:.2f} node-hours")
    if current.successor:
        yield Text(serving.successor_line(current.successor))
    if current.traffic is None:
        yield worker_table(current)
    else:
        yield from _loads(current)
    yield from (Text(f"worker {w.rank}: {w.detail}") for w in current.workers if w.detail)
    yield Text(f"logs: {attempt.logs}")


def _loads(current: Status) -> Iterator[RenderableType]:
    for model in dict.fromkeys(w.model for w in current.workers) or ("",):
        if model:
            yield Text(serving.model_line(model, current.by_model.get(model)))
        yield serving.load_table(current, model)


def summary(attempt: Attempt, s: BatchSummary) -> RenderableType:
    """Return the figures of a finished batch, and its files in lines that can be copied."""
    files = [f"answers: {attempt.run.output}"]
    files += [f"errors:  {attempt.run.errors}"] if s.progress.failed else []
    return Group(_summary(attempt, s), *map(Text, files))


def _summary(attempt: Attempt, s: BatchSummary) -> Table:
    p, seconds = s.progress, max(s.seconds, 1e-9)
    table = Table(title="result", title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    resumed = f" ({p.resumed} by earlier attempts)" if p.resumed else ""
    table.add_row("requests", f"{p.done} answered{resumed}, {p.failed} failed")
    table.add_row("time", f"{duration(s.seconds)}, {(p.done - p.resumed) / seconds:.2f} requests/s")
    rate = f"{p.completion_tokens / seconds:.1f} tokens/s"
    cached = f" ({p.cached_tokens / p.prompt_tokens:.1%} cached)" if p.cached_tokens else ""
    table.add_row("tokens", f"{p.prompt_tokens} in{cached}, {p.completion_tokens} out, {rate}")
    if s.ttft_prefill.count:
        table.add_row("TTFT on prefill workers", quantiles_text(s.ttft_prefill))
    name = "TTFT on decode workers, KV transfer included" if s.ttft_prefill.count else "TTFT"
    table.add_row(name, quantiles_text(s.ttft_decode))
    table.add_row("ITL", quantiles_text(s.itl))
    table.add_row("KV bytes moved by NIXL", f"{s.kv_bytes:,}")
    if s.kv_transfer_failures:
        table.add_row("failed KV transfers", f"{s.kv_transfer_failures:,}")
    table.add_row("decode workers busy", f"{100 * s.decode_busy:.0f} % of the time")
    roster = attempt.roster()
    if roster:
        how = f"{len(roster.nodes)} agents by {roster.method} in {roster.seconds:.3f} s"
        table.add_row("bootstrap", escape(how))
    return table


def quantiles_text(q: Quantiles) -> str:
    return f"p50 {1000 * q.p50:.1f} ms, p99 {1000 * q.p99:.1f} ms" if q.count else "not seen"
