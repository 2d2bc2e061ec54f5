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
    known, outcome = attempt.status(), attempt.outcome()
    rows: list[RenderableType] = [_head(attempt, job, outcome), *_addresses(attempt, outcome)]
    if known:
        rows += [] if outcome else [_phase(known)]
        rows += [Text(f"notice: {notice}") for notice in known.notices]
        rows += _figures(attempt, known, ended=outcome is not None)
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


def _phase(known: Status) -> Text:
    age = time.time() - known.at
    stale = f" (last update {age:.0f} s ago)" if age > STALE_S else ""
    left = ""
    if known.ends_at:
        left = f", {duration(max(known.ends_at - time.time(), 0))} of walltime left"
    return Text(f"{known.phase}{left}{stale}")


def _figures(attempt: Attempt, known: Status, *, ended: bool) -> Iterator[RenderableType]:
    """Yield the load of a serving run, or the progress of a batch."""
    if known.traffic:
        yield Text(serving.traffic_line(known.traffic))
    elif known.progress.total and not ended:
        yield Text(progress_line(known.progress))
    if known.planner:
        yield Text(serving.planner_line(known.planner))
    yield from (Text(serving.extra_job_line(job)) for job in known.extra_jobs)
    if known.node_hours:
        yield Text(f"extra jobs have used {known.node_hours:.2f} node-hours")
    if known.successor:
        yield Text(serving.successor_line(known.successor))
    if known.traffic is None:
        yield worker_table(known)
    else:
        yield from _loads(known)
    yield from (Text(f"worker {w.rank}: {w.detail}") for w in known.workers if w.detail)
    yield Text(f"logs: {attempt.logs}")


def _loads(known: Status) -> Iterator[RenderableType]:
    for model in dict.fromkeys(w.model for w in known.workers) or ("",):
        if model:
            yield Text(serving.model_line(model, known.by_model.get(model)))
        yield serving.load_table(known, model)


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
    table.add_row("decode workers busy", f"{100 * s.decode_busy:.0f} % of the time")
    roster = attempt.roster()
    if roster:
        how = f"{len(roster.nodes)} agents by {roster.method} in {roster.seconds:.3f} s"
        table.add_row("bootstrap", how)
    return table


def quantiles_text(q: Quantiles) -> str:
    return f"p50 {1000 * q.p50:.1f} ms, p99 {1000 * q.p99:.1f} ms" if q.count else "not seen"
