"""`hpc-dynamo simulate`: a job in virtual time, before it is submitted."""

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hpc_dynamo import simulation
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.render.console import OUT, can_redraw
from hpc_dynamo.cli.render.progress import duration
from hpc_dynamo.cli.render.table import Column, Grid
from hpc_dynamo.config import Config, Role, require_single_model, validate
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.plotting import draw, import_matplotlib
from hpc_dynamo.simulation import (
    SimulatedJob,
    SimulationResult,
    TraceRequest,
    from_config,
    read_trace,
)
from hpc_dynamo.simulation.result import mean, quantile
from hpc_dynamo.simulation.result_plot import panels
from hpc_dynamo.simulation.split_search import SplitResult, search_splits

SHOWN = 8  # of the splits that were tried
PICTURES = (".png", ".svg", ".pdf")


def options(verb: ArgumentParser) -> None:
    about = "the load; the same as simulate.trace=FILE"
    verb.add_argument("--trace", metavar="FILE", help=about)
    about = "search for the best split of the workers; the same as simulate.search_split=true"
    verb.add_argument("--search", action="store_true", help=about)
    about = "PNG, SVG or PDF of roles and latencies over time; or simulate.plot=FILE"
    verb.add_argument("--picture", metavar="FILE", help=about)


def simulate(args: Namespace) -> int:
    """Put a trace on a modelled job with the real router and planner; starts nothing."""
    config = compose(list(_words(args)), args.config_dir)
    require_single_model(config, "a simulation")
    validate(config)
    requests = _requests(config)
    job = from_config.simulated_job(config)
    from_config.check_requests_fit(job, requests)
    if config.simulate.search_split:
        return _search(config, job, requests)
    planner = from_config.simulated_planner(config, job)
    with _bar(len(requests)) as bar:
        outcome = simulation.simulate(job, requests, planner, lambda seen: bar.advance())
    OUT.print(_figures(outcome, len(requests)))
    if outcome.failed_requests:
        OUT.print(f"lost: {next(s.error for s in outcome.results if s.error)}", markup=False)
    _draw(config, job, outcome)
    return 0


def _words(args: Namespace) -> Iterator[str]:
    yield from args.overrides
    if args.search:
        yield "simulate.search_split=true"
    for name in ("trace", "plot"):
        if (given := getattr(args, name)) is not None:
            yield f"simulate.{name}={given}"


def _requests(config: Config) -> list[TraceRequest]:
    wanted, picture = config.simulate, Path(config.simulate.plot)
    if not wanted.trace:
        hint = "--trace FILE, JSON lines of timestamp (ms), input_length, output_length, hash_ids"
        raise ConfigError("simulate.trace is not set", hint=hint)
    if wanted.plot and picture.suffix not in PICTURES:
        hint = f"a name that ends in one of {' '.join(PICTURES)}"
        raise ConfigError(f"simulate.plot={picture} is no form of picture", hint=hint)
    if wanted.plot:
        import_matplotlib()
        if not picture.absolute().parent.is_dir():
            what = f"simulate.plot={picture}: no folder {picture.absolute().parent}"
            raise ConfigError(what, hint=f"mkdir -p {shlex.quote(str(picture.absolute().parent))}")
    return read_trace(Path(wanted.trace), wanted.max_requests, wanted.speed)


class _Bar:
    """On a terminal; elsewhere nothing."""

    def __init__(self, bar: Progress | None, total: int) -> None:
        self._bar, self._total = bar, total
        self._task = bar.add_task("", total=total) if bar else None

    def begin(self, text: str) -> None:
        """A part begins."""
        if self._bar and self._task is not None:
            self._bar.reset(self._task, description=text, total=self._total)

    def advance(self) -> None:
        if self._bar and self._task is not None:
            self._bar.advance(self._task)


@contextmanager
def _bar(total: int) -> Iterator[_Bar]:
    console = Console(stderr=True)
    if not can_redraw(console.file):
        yield _Bar(None, total)
        return
    text = TextColumn("{task.description}")
    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), text)
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        yield _Bar(bar, total)


def _search(config: Config, job: SimulatedJob, requests: Sequence[TraceRequest]) -> int:
    workers = len(job.ranks)
    if workers < 2:
        hint = "topology.prefill.workers=8 topology.decode.workers=8: their sum is what counts"
        raise ConfigError(f"{workers} worker cannot be split", hint=hint)
    with _bar(len(requests)) as bar:
        tried = search_splits(
            job, workers, requests, lambda s: bar.begin(_name(s)), lambda seen: bar.advance()
        )
    OUT.print(_compared(tried[:SHOWN], len(requests)))
    OUT.print(f"the best of {len(tried)}: {_overrides(tried[0])}", markup=False)
    _draw(config, job, tried[0].outcome)
    return 0


def _name(workers: dict[Role, int]) -> str:
    return " + ".join(f"{count} {role}" for role, count in workers.items())


def _overrides(best: SplitResult) -> str:
    kind = "aggregated" if Role.aggregated in best.workers else "disaggregated"
    counts = (f"topology.{role}.workers={count}" for role, count in best.workers.items())
    return " ".join((f"topology={kind}", *counts))


def _title(first: SimulationResult, requests: int) -> str:
    o = first.targets
    targets = f"TTFT {o.ttft_s:g} s, ITL {1000 * o.itl_s:g} ms"
    return f"{requests} requests in {duration(first.seconds)} of virtual time; targets {targets}"


def _figures(outcome: SimulationResult, requests: int) -> Table:
    """Of one run, a row a figure."""
    title = _title(outcome, requests)
    table = Table(title=title, title_justify="left", show_header=False)
    for _ in range(2):
        table.add_column(overflow="fold")
    ttft, itl = outcome.ttft_s(), [1000 * s for s in outcome.itl_s()]
    failed = f", {outcome.failed_role_changes} failed" if outcome.failed_role_changes else ""
    rows = {
        "goodput": f"{outcome.goodput_hz:.3f} requests/s within both targets",
        "SLA attainment": f"{100 * outcome.attainment:.1f} % of all requests",
        "GPU-hours": f"{outcome.gpu_hours:.2f}",
        "TTFT mean, p50, p99": _spread(ttft, 2) + " s",
        "ITL mean, p50, p99": _spread(itl, 1) + " ms",
        "prompt tokens from caches": f"{100 * outcome.hit_rate:.1f} %",
        "changes of role": f"{outcome.role_changes}{failed}",
        "refused or lost": f"{outcome.failed_requests} requests",
    }
    for row in rows.items():
        table.add_row(*row)
    return table


def _compared(tried: Sequence[SplitResult], requests: int) -> Grid:
    """A row a split."""
    names = ("goodput/s", "attained", "TTFT s", "p99 s", "ITL ms", "p99 ms", "refused")
    title = _title(tried[0].outcome, requests)
    table = Grid("workers", *(Column(name, right=True) for name in names), title=title)
    for each in tried:
        o = each.outcome
        ttft, itl = o.ttft_s(), [1000 * s for s in o.itl_s()]
        table.add(
            _name(each.workers),
            *(f"{o.goodput_hz:.3f}", f"{100 * o.attainment:.1f} %"),
            *(f"{mean(ttft):.2f}", f"{quantile(ttft, 0.99):.2f}"),
            *(f"{mean(itl):.1f}", f"{quantile(itl, 0.99):.1f}", str(o.failed_requests)),
        )
    return table


def _spread(ordered: Sequence[float], digits: int) -> str:
    shown = (mean(ordered), quantile(ordered, 0.5), quantile(ordered, 0.99))
    return ", ".join(f"{value:.{digits}f}" for value in shown)


def _picture_title(config: Config, outcome: SimulationResult) -> str:
    """Return trace, modelled engine, workers and policies."""
    begin = [counts for at, *counts in outcome.roles if at == outcome.roles[0][0]]
    prefill, decode = begin[-1] if begin else (0, 0)
    split = f"{prefill} prefill + {decode} decode" if prefill + decode else "aggregated"
    policies = f"router {config.router.policy}, planner {config.planner.mode}"
    return (
        f"{Path(config.simulate.trace).name} on {config.simulate.timing_model}, {split}; {policies}"
    )


def _draw(config: Config, job: SimulatedJob, outcome: SimulationResult) -> None:
    file = config.simulate.plot
    if file:
        draw(Path(file), _picture_title(config, outcome), list(panels(outcome, job.kind)))
        OUT.print(f"drawn: {file}", markup=False, highlight=False)
