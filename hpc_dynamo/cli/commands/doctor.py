"""`hpc-dynamo doctor`: look over the nodes of a job, as its own job or in an allocation."""

import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec
from rich.console import Group, RenderableType
from rich.markup import escape

from hpc_dynamo import launch
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.launch_run import placed, say
from hpc_dynamo.cli.node_resources import asked_of_slurm, counted
from hpc_dynamo.cli.render.console import OUT
from hpc_dynamo.cli.render.table import HOST, PROSE, Column, Grid
from hpc_dynamo.cli.run_folder import serve_run
from hpc_dynamo.cli.run_lookup import is_named, is_run
from hpc_dynamo.cli.unknown_options import path
from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.doctor import task
from hpc_dynamo.doctor.analysis import typical_gb_s
from hpc_dynamo.doctor.coordinator import report_file
from hpc_dynamo.doctor.records import DoctorReport, Finding, FindingLevel, NodeReady
from hpc_dynamo.errors import LaunchError, UsageError
from hpc_dynamo.launch import JobState, LaunchedJob
from hpc_dynamo.run import Attempt, read_json, write_json
from hpc_dynamo.topology import Plan
from hpc_dynamo.topology import plan as lay_out

LOOK_S = 0.2
LAST_WORD_S = 5.0  # a shared disk may show the report later than the scheduler the end
SHOWN = 16  # nodes of a matrix that fits on a terminal


def options(verb: ArgumentParser) -> None:
    verb.add_argument("--json", type=path, metavar="FILE", help="write all findings there")


def doctor(args: Namespace) -> int:
    """Measure and check; 1 where there is a fault, 0 for healthy."""
    _refuse_runs(args.overrides)
    config = placed(compose(args.overrides, args.config_dir), "doctor")
    launcher = launch.resolve_launcher(config.cluster.launcher)
    config = counted(config, launcher)
    layout = _layout(config, launcher)
    config = asked_of_slurm(config, layout, launcher)
    attempt = serve_run(config, say).new_attempt(config, layout)
    job = launch.start_attempt(launcher, attempt, config, layout, task.main)
    OUT.print(f"looking over {layout.nodes} node(s), logs in {attempt.logs}", markup=False)
    try:
        report = _await(attempt, job)
    except KeyboardInterrupt:
        job.stop()
        raise
    OUT.print(shown(report))
    if args.json:
        write_json(args.json, report)
    return 0 if report.healthy else 1


def _refuse_runs(words: Sequence[str]) -> None:
    """Raise UsageError for the folder or the name of a run, which other verbs take."""
    for word in words:
        if "=" not in word and (is_run(word) or is_named(word, words)):
            what = f"{word} is a run; doctor takes no run, only FIELD=VALUE overrides"
            hint = "hpc-dynamo doctor, with the overrides of your serve or batch command if any"
            raise UsageError(what, hint=hint)


def _layout(config: Config, launcher: Launcher) -> Plan:
    """In an allocation all of its nodes, whatever the topology takes of them."""
    layout = lay_out(config)
    if launcher is not Launcher.allocation or len(layout.group_plans) > 1:
        return layout
    given = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    return replace(layout, nodes=max(layout.nodes, given))


def _await(attempt: Attempt, job: LaunchedJob) -> DoctorReport:
    """As long as the job lives, which has deadlines of its own. Raises LaunchError."""
    ended_at, said = 0.0, ""
    while (report := read_json(report_file(attempt), DoctorReport)) is None:
        state, detail = job.state()
        if state is JobState.pending and detail != said:
            OUT.print(said := detail, markup=False)
        if state is JobState.ended:
            ended_at = ended_at or time.monotonic()
            if time.monotonic() - ended_at > LAST_WORD_S:
                what = f"the job ended without a report ({detail})"
                hint = f"also {attempt.submitit}; does every node see {attempt.run.path}?"
                raise LaunchError(what, log=attempt.agent_log(0), hint=hint)
        time.sleep(LOOK_S)
    return report


def shown(report: DoctorReport) -> RenderableType:
    """Nodes, links, findings and the sum of it."""
    parts: list[RenderableType] = [_nodes(report)]
    if report.links:
        parts.append(_matrix(report) if len(report.hosts) <= SHOWN else _worst(report))
    parts += _findings(report)
    faults = sum(f.level is FindingLevel.fault for f in report.findings)
    warnings = len(report.findings) - faults
    said = f"{faults} fault(s)" if faults else "[green]healthy[/]"
    parts.append(f"{said}, {warnings} warning(s); {report.seconds:.1f} s")
    return Group(*parts)


def _nodes(report: DoctorReport) -> Grid:
    figures = ("GPUs", "model GB/s", "/dev/shm GiB", "open files", "MPI", "NIXL")
    table = Grid(Column("node", fold=HOST), "address", *figures, title="nodes")
    for node in report.nodes:
        table.add(*map(escape, _cells(node)))
    return table


def _cells(node: NodeReady) -> tuple[str, ...]:
    facts = node.facts
    read = "-" if facts.model_gb_s is None else f"{facts.model_gb_s:.2f}"
    files = "unlimited" if facts.nofile < 0 else str(facts.nofile)
    gpus = f"{len(facts.gpus_visible)} of {facts.gpus_wanted}"
    shm = f"{facts.shm_free / (1 << 30):.1f}"
    return (
        *(facts.host, node.address, gpus, read, shm, files),
        *(facts.mpi or "-", f"{node.memory} memory" if node.memory else "-"),
    )


def _matrix(report: DoctorReport) -> Grid:
    """Rows pull from columns."""
    usual = typical_gb_s(report.links)
    title = f"NIXL: row pulls from column, GB/s / µs; usual {usual:.2f} GB/s; over {_by(report)}"
    title += _again(report)
    table = Grid("", *(Column(host, right=True) for host in report.hosts), title=title)
    found = {(each.node, each.peer): each for each in report.links}
    for row, host in enumerate(report.hosts):
        cells = []
        for column in range(len(report.hosts)):
            link = found.get((row, column))
            said = f"{link.gb_s:.2f} / {link.latency_us:.0f}" if link else "-"
            cells.append("[red]dead[/]" if link and link.error else said)
        table.add(escape(host), *cells)
    return table


def _worst(report: DoctorReport) -> Grid:
    """Of many nodes the ten slowest links; --json has all."""
    title = (
        f"NIXL: the slowest of {len(report.links)} links, usual {typical_gb_s(report.links):.2f}"
    )
    title += _again(report)
    names = (Column("to", fold=HOST), Column("from", fold=HOST), "GB/s", "µs")
    table = Grid(*names, Column("over", fold=PROSE), title=title)
    for link in sorted(report.links, key=lambda link: link.gb_s)[:10]:
        ends = report.hosts[link.node], report.hosts[link.peer]
        figures = f"{link.gb_s:.2f}", f"{link.latency_us:.0f}"
        table.add(*map(escape, (*ends, *figures, link.error or link.transport)))
    return table


def _again(report: DoctorReport) -> str:
    count = sum(link.times > 1 for link in report.links)
    return f"; {count} measured more than once" if count else ""


def _by(report: DoctorReport) -> str:
    """Transports and interfaces that UCX chose."""
    names = {each.transport for each in report.links if each.transport}
    return escape(", ".join(sorted(names)) or "?")


def _findings(report: DoctorReport) -> Iterator[str]:
    """Yield lines for each kind of finding, with all its nodes: a fix is there to be copied."""
    hosts = dict[Finding, list[str]]()
    for found in sorted(report.findings, key=lambda f: f.level):
        hosts.setdefault(msgspec.structs.replace(found, host=""), []).append(found.host)
    for found, where in hosts.items():
        colour = "red" if found.level is FindingLevel.fault else "yellow"
        nodes = ", ".join(dict.fromkeys(filter(None, where)))
        on = f" on {escape(nodes)}" if nodes else ""
        yield f"[{colour}]{found.level}[/]{on}: {escape(found.what)}; {escape(found.why)}"
        yield f"  try: {escape(found.fix)}"
