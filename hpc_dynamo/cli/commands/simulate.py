"""`hpc-dynamo simulate`: replay a trace against a simulated deployment. Submits nothing."""

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpc_dynamo import simulation
from hpc_dynamo.cli.arguments import add_overrides
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.render.console import OUT, print_line
from hpc_dynamo.cli.render.simulation import (
    SimulationBar,
    comparison_table,
    result_table,
    split_overrides,
    split_text,
)
from hpc_dynamo.config import Config, Simulate, require_single_model, validate
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.plotting import draw, import_matplotlib
from hpc_dynamo.simulation import (
    SimulatedJob,
    SimulationResult,
    TraceRequest,
    from_config,
    read_trace,
)
from hpc_dynamo.simulation.result_plot import panels
from hpc_dynamo.simulation.split_search import search_splits

SHOWN = 8  # splits in the table of a search
PLOT_FORMATS = (".png", ".svg", ".pdf")

EXAMPLES = """\
  hpc-dynamo simulate --trace trace.jsonl topology.prefill.workers=4 topology.decode.workers=4
  hpc-dynamo simulate --trace trace.jsonl topology.prefill.workers=8 topology.decode.workers=8 \\
      planner.mode=sla planner.ttft_s=2 planner.itl_s=0.04 --plot roles.png
  hpc-dynamo simulate --trace trace.jsonl --search topology.prefill.workers=8 \\
      topology.decode.workers=8 simulate.timing_model=a100-8b simulate.speed=2"""
NOTES = """\
The router and the planner are the real ones. The engines are modelled: an hour of load takes
seconds.
A line of a trace: `{"timestamp": 0, "input_length": 6758, "output_length": 9, "hash_ids": [0]}`.
Times are in ms. Each id stands for 512 tokens of the prompt; equal ids are equal tokens."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of the verb."""
    add_overrides(parser)
    about = "load to replay (simulate.trace=FILE)"
    parser.add_argument("--trace", metavar="FILE", help=about)
    about = "find the best split into prefill and decode (simulate.search_split=true)"
    parser.add_argument("--search", action="store_true", help=about)
    about = "plot roles and latencies over time: .png, .svg or .pdf (simulate.plot=FILE)"
    parser.add_argument("--plot", "--picture", metavar="FILE", help=about)


def check(args: Namespace) -> None:
    from_config.simulated_job(_config(args))


def run(args: Namespace) -> int:
    """Simulate the trace, or search for the best split."""
    config = _config(args)
    requests = _requests(config.simulate)
    job = from_config.simulated_job(config)
    from_config.check_requests_fit(job, requests)
    if config.simulate.search_split:
        return _search(config, job, requests)
    planner = from_config.simulated_planner(config.planner, job)
    with SimulationBar(len(requests)) as bar:
        outcome = simulation.simulate(job, requests, planner, lambda result: bar.count_request())
    OUT.print(result_table(outcome, len(requests)))
    if outcome.failed_requests:
        print_line(f"lost: {next(s.error for s in outcome.results if s.error)}")
    _draw(config, job, outcome)
    return 0


def _config(args: Namespace) -> Config:
    config = compose(list(_overrides(args)), args.config_dir)
    require_single_model(config.models, "a simulation")
    validate(config)
    return config


def _overrides(args: Namespace) -> Iterator[str]:
    yield from args.overrides
    if args.search:
        yield "simulate.search_split=true"
    for name in ("trace", "plot"):
        if (given := getattr(args, name)) is not None:
            yield f"simulate.{name}={given}"


def _requests(simulate: Simulate) -> list[TraceRequest]:
    settings, picture = simulate, Path(simulate.plot)
    if not settings.trace:
        hint = "--trace FILE, JSON lines of timestamp (ms), input_length, output_length, hash_ids"
        raise ConfigError("simulate.trace is not set", hint=hint)
    if settings.plot and picture.suffix not in PLOT_FORMATS:
        hint = f"a name that ends in one of {' '.join(PLOT_FORMATS)}"
        raise ConfigError(f"simulate.plot={picture} is not a known format", hint=hint)
    if settings.plot:
        import_matplotlib()
        if not picture.absolute().parent.is_dir():
            what = f"simulate.plot={picture}: no folder {picture.absolute().parent}"
            raise ConfigError(what, hint=f"mkdir -p {shlex.quote(str(picture.absolute().parent))}")
    return read_trace(Path(settings.trace), settings.max_requests, settings.speed)


def _search(config: Config, job: SimulatedJob, requests: Sequence[TraceRequest]) -> int:
    workers = len(job.ranks)
    if workers < 2:
        hint = "topology.prefill.workers=8 topology.decode.workers=8: their sum is what counts"
        raise ConfigError(f"{workers} worker cannot be split", hint=hint)
    with SimulationBar(len(requests)) as bar:
        tried = search_splits(
            job,
            workers,
            requests,
            lambda s: bar.restart(split_text(s)),
            lambda result: bar.count_request(),
        )
    OUT.print(comparison_table(tried[:SHOWN], len(requests)))
    print_line(f"the best of {len(tried)}: {split_overrides(tried[0])}")
    _draw(config, job, tried[0].outcome)
    return 0


def _plot_title(config: Config, outcome: SimulationResult) -> str:
    """Return trace, modelled engine, workers and policies."""
    first = [counts for at, *counts in outcome.roles if at == outcome.roles[0][0]]
    prefill, decode = first[-1] if first else (0, 0)
    split = f"{prefill} prefill + {decode} decode" if prefill + decode else "aggregated"
    policies = f"router {config.router.policy}, planner {config.planner.mode}"
    return (
        f"{Path(config.simulate.trace).name} on {config.simulate.timing_model}, {split}; {policies}"
    )


def _draw(config: Config, job: SimulatedJob, outcome: SimulationResult) -> None:
    file = config.simulate.plot
    if file:
        draw(Path(file), _plot_title(config, outcome), list(panels(outcome, job.kind)))
        print_line(f"plot: {file}")
