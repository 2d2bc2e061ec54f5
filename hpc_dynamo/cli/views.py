"""What people see: tables and lines from plans, states and figures."""

import itertools
import math
import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpc_dynamo.cli import serving
from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.launch import JobState
from hpc_dynamo.launch.resources import components, resources
from hpc_dynamo.messages import Progress, Quantiles, Status, Summary
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan

STALE_S = 15.0  # a status file older than this is not of a living head


def layout(config: Config, plan: Plan) -> RenderableType:
    """Which worker is where."""
    if config.route.engines:
        return _engines(config)
    engines = dict.fromkeys(f"{o.engine.name}, {o.topology.kind}" for o in config.each.values())
    title = f"{'; '.join(engines)}: {plan.nodes} node(s)"
    models = ["model"] if config.models else []
    table = Table("node", "rank", *models, "role", "GPUs", title=title, title_justify="left")
    parts = components(config, plan)
    for _, part in parts:
        for node in range(part.first_node, part.first_node + part.nodes):
            here = _on_node(part, node, named=bool(models))
            for row in here or [("-", *("-" for _ in models), "idle", "-")]:
                table.add_row(" ".join(filter(None, (str(node), part.kind))), *row)
    return Group(table, *itertools.starmap(_node, parts))


def _on_node(plan: Plan, node: int, *, named: bool) -> list[tuple[str, ...]]:
    """Rank, model if they are `named`, role and GPUs of every worker there."""
    rows = list[tuple[str, ...]]()
    for worker, shard in [(w, s) for w in plan.workers for s in w.shards if s.node == node]:
        part = worker.shards.index(shard) + 1
        split = f" (part {part} of {len(worker.shards)})" if len(worker.shards) > 1 else ""
        gpus = ",".join(map(str, shard.gpus)) or "-"
        model = (worker.model,) if named else ()
        rows.append((f"{worker.rank}{split}", *model, str(worker.role), gpus))
    return rows


def _node(config: Config, plan: Plan) -> str:
    """What a node must give, of those that are alike."""
    need = resources(config, plan)
    gpus = f", {need.gpus} GPUs" if need.gpus else ""
    of = f" of {plan.kind}" if plan.kind else ""
    return f"a node{of}: {need.cpus} CPUs, {need.memory_gb} GB{gpus}; time {need.time_min} min"


def _engines(config: Config) -> Table:
    """Those that somebody else started."""
    title = f"{config.topology.kind}, engines that run already"
    table = Table("rank", "role", "URL", title=title, title_justify="left")
    for rank, (role, url) in enumerate(config.route.engines):
        table.add_row(str(rank), str(role), url)
    return table


def started(attempt: Attempt, launcher: Launcher) -> str:
    job = attempt.job()
    what = f"{launcher} job {job.job_id}" if job else str(launcher)
    return f"attempt {attempt.number} is {what}; run folder {attempt.run.path}"


def workers(status: Status) -> Table:
    table = Table("rank", "role", "node", "state", "start")
    table.add_column("log", overflow="fold")
    for w in status.workers:
        start = f"{w.start_s:.1f} s" if w.start_s else "-"
        table.add_row(str(w.rank), str(w.role), w.host, str(w.state), start, w.log)
    return table


def status(attempt: Attempt, job: tuple[JobState, str] | None) -> RenderableType:
    """The whole picture of an attempt."""
    known, roster, outcome = attempt.status(), attempt.roster(), attempt.outcome()
    state, detail = job or (JobState.unknown, "never submitted")
    rows: list[RenderableType] = [
        Text(f"{attempt.run.path} attempt {attempt.number}: {state} ({detail})")
    ]
    if roster:
        hosts = ", ".join(f"{n.host} {n.address}" for n in roster.nodes)
        rows.append(Text(f"roster by {roster.method} in {roster.seconds:.3f} s: {hosts}"))
    endpoint = attempt.endpoint()
    if endpoint and not outcome:
        rows.append(Text(f"endpoint {endpoint.url}, {serving.served(endpoint)}"))
    if known:
        rows += [_phase(known, ended=outcome is not None), *_figures(known)]
        rows += [Text(f"notice: {notice}") for notice in known.notices]
    if outcome and outcome.message:
        rows.append(Text(f"ended: {outcome.message}"))
    if outcome and outcome.summary:
        rows.append(summary(attempt, outcome.summary))
    return Group(*rows)


def _phase(known: Status, *, ended: bool) -> Text:
    if ended:
        return Text(known.phase)
    age = time.time() - known.at
    stale = f" (last heard {age:.0f} s ago)" if age > STALE_S else ""
    left = ""
    if known.ends_at:
        left = f", {duration(max(known.ends_at - time.time(), 0))} of walltime left"
    return Text(f"{known.phase}{left}{stale}")


def _figures(known: Status) -> Iterator[RenderableType]:
    """Of a serving run the load, of a batch the progress."""
    if known.planning:
        yield Text(serving.planner_line(known.planning))
    yield from (Text(serving.grown_line(job)) for job in known.grown)
    if known.node_hours:
        yield Text(f"further jobs have used {known.node_hours:.2f} node-hours")
    if known.traffic is None:
        yield workers(known)
        if known.progress.total:
            yield progress_line(known.progress)
        return
    if known.successor:
        yield Text(serving.successor_line(known.successor))
    for model in dict.fromkeys(w.model for w in known.workers) or ("",):
        if model:
            yield Text(serving.model_line(model, known.by_model.get(model)))
        yield serving.loads(known, model)
    yield from (Text(f"worker {w.rank}: {w.detail}") for w in known.workers if w.detail)
    yield serving.traffic_line(known.traffic)


def progress_line(p: Progress) -> str:
    """One line for a log."""
    fresh = p.done - p.resumed
    rate = fresh / p.elapsed_s if p.elapsed_s > 0 else 0.0
    left = (p.total - p.done - p.failed) / rate if rate else math.inf
    eta = f", {duration(left)} left" if math.isfinite(left) else ""
    tokens = p.completion_tokens / p.elapsed_s if p.elapsed_s > 0 else 0.0
    speed = f", {tokens:.0f} tokens/s" if p.unit == "requests" else ""
    return (
        f"{p.done}/{p.total} done, {p.failed} failed, {p.running} under way, "
        f"{rate:.1f} {p.unit}/s{speed}{eta}"
    )


def summary(attempt: Attempt, s: Summary) -> Table:
    """The figures of a finished batch."""
    p, seconds = s.progress, max(s.seconds, 1e-9)
    table = Table(title="result", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # paths are to be copied, not cut
    resumed = f" ({p.resumed} by earlier attempts)" if p.resumed else ""
    table.add_row("requests", f"{p.done} answered{resumed}, {p.failed} failed")
    table.add_row("time", f"{duration(s.seconds)}, {(p.done - p.resumed) / seconds:.2f} requests/s")
    rate = f"{p.completion_tokens / seconds:.1f} tokens/s"
    table.add_row("tokens", f"{p.prompt_tokens} in, {p.completion_tokens} out, {rate}")
    if s.ttft_prefill.count:
        table.add_row("TTFT on prefill workers", quantiles(s.ttft_prefill))
    name = "TTFT on decode workers, KV transfer included" if s.ttft_prefill.count else "TTFT"
    table.add_row(name, quantiles(s.ttft_decode))
    table.add_row("ITL", quantiles(s.itl))
    table.add_row("KV bytes moved by NIXL", f"{s.kv_bytes:,}")
    table.add_row("decode workers busy", f"{100 * s.decode_busy:.0f} % of the time")
    roster = attempt.roster()
    if roster:
        how = f"{len(roster.nodes)} agents by {roster.method} in {roster.seconds:.3f} s"
        table.add_row("bootstrap", how)
    table.add_row("answers", str(attempt.run.output))
    table.add_row("errors", str(attempt.run.errors) if p.failed else "none")
    return table


def quantiles(q: Quantiles) -> str:
    return f"p50 {1000 * q.p50:.1f} ms, p99 {1000 * q.p99:.1f} ms" if q.count else "not seen"


def duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {s:02d} s" if minutes else f"{seconds:.1f} s"
