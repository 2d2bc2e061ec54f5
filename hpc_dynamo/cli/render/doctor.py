"""Report of `hpc-dynamo doctor` on the screen."""

from collections.abc import Iterator

import msgspec
from rich.console import Group, RenderableType
from rich.markup import escape

from hpc_dynamo.cli.render.table import HOST_WIDTH, TEXT_WIDTH, Column, ResponsiveTable
from hpc_dynamo.doctor.analysis import typical_gb_s
from hpc_dynamo.doctor.records import DoctorReport, Finding, FindingLevel, NodeReady

MATRIX_NODES = 16  # largest number of nodes whose matrix of links fits on a terminal


def report_view(report: DoctorReport) -> RenderableType:
    """Return tables of nodes and links, the findings and their number."""
    parts: list[RenderableType] = [_nodes(report)]
    if report.links:
        parts.append(_matrix(report) if len(report.hosts) <= MATRIX_NODES else _slowest(report))
    parts += _findings(report)
    faults = sum(f.level is FindingLevel.fault for f in report.findings)
    warnings = len(report.findings) - faults
    result = f"{faults} fault(s)" if faults else "[green]healthy[/]"
    parts.append(f"{result}, {warnings} warning(s); {report.seconds:.1f} s")
    return Group(*parts)


def _nodes(report: DoctorReport) -> ResponsiveTable:
    figures = ("GPUs", "model GB/s", "/dev/shm GiB", "open files", "MPI", "NIXL")
    table = ResponsiveTable(Column("node", fold=HOST_WIDTH), "address", *figures, title="nodes")
    for node in report.nodes:
        table.add_row(*map(escape, _cells(node)))
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


def _matrix(report: DoctorReport) -> ResponsiveTable:
    """Return the speed of every link: the node of the row pulls from that of the column."""
    typical = typical_gb_s(report.links)
    title = f"NIXL: row pulls from column, GB/s / µs; typical {typical:.2f} GB/s; over "
    title += _transports(report) + _repeats(report)
    table = ResponsiveTable("", *(Column(host, right=True) for host in report.hosts), title=title)
    found = {(each.node, each.peer): each for each in report.links}
    for row, host in enumerate(report.hosts):
        cells = []
        for column in range(len(report.hosts)):
            link = found.get((row, column))
            cell = f"{link.gb_s:.2f} / {link.latency_us:.0f}" if link else "-"
            cells.append("[red]dead[/]" if link and link.error else cell)
        table.add_row(escape(host), *cells)
    return table


def _slowest(report: DoctorReport) -> ResponsiveTable:
    """Return the ten slowest links of many nodes. `--json` writes all."""
    title = (
        f"NIXL: the slowest of {len(report.links)} links, typical {typical_gb_s(report.links):.2f}"
    )
    title += _repeats(report)
    names = (Column("to", fold=HOST_WIDTH), Column("from", fold=HOST_WIDTH), "GB/s", "µs")
    table = ResponsiveTable(*names, Column("over", fold=TEXT_WIDTH), title=title)
    for link in sorted(report.links, key=lambda link: link.gb_s)[:10]:
        ends = report.hosts[link.node], report.hosts[link.peer]
        figures = f"{link.gb_s:.2f}", f"{link.latency_us:.0f}"
        table.add_row(*map(escape, (*ends, *figures, link.error or link.transport)))
    return table


def _repeats(report: DoctorReport) -> str:
    count = sum(link.times > 1 for link in report.links)
    return f"; {count} measured more than once" if count else ""


def _transports(report: DoctorReport) -> str:
    """Return the transports and interfaces that UCX selected."""
    names = {each.transport for each in report.links if each.transport}
    return escape(", ".join(sorted(names)) or "?")


def _findings(report: DoctorReport) -> Iterator[str]:
    """Yield lines for each kind of finding, with all its nodes and one remedy to copy."""
    hosts = dict[Finding, list[str]]()
    for found in sorted(report.findings, key=lambda f: f.level):
        hosts.setdefault(msgspec.structs.replace(found, host=""), []).append(found.host)
    for found, names in hosts.items():
        colour = "red" if found.level is FindingLevel.fault else "yellow"
        nodes = ", ".join(dict.fromkeys(filter(None, names)))
        on = f" on {escape(nodes)}" if nodes else ""
        yield f"[{colour}]{found.level}[/]{on}: {escape(found.what)}; {escape(found.why)}"
        yield f"  try: {escape(found.fix)}"
