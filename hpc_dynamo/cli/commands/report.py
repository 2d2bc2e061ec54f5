"""`hpc-dynamo report`: show and plot the decisions of a run's planner."""

from argparse import ArgumentParser, Namespace

from hpc_dynamo import jsonl
from hpc_dynamo.cli.arguments import add_run, path
from hpc_dynamo.cli.render.console import OUT, print_line
from hpc_dynamo.cli.render.planner_history import (
    PlannerHistory,
    decision_table,
    panels,
    summary_lines,
    title,
)
from hpc_dynamo.cli.run_lookup import find_run
from hpc_dynamo.errors import ConfigError, MissingDependency
from hpc_dynamo.planner.records import PlannerRecord
from hpc_dynamo.plotting import draw
from hpc_dynamo.run import Run

PLOT = "planner.png"  # in the run's folder

EXAMPLES = """\
  hpc-dynamo report  # the newest run with a planner; also while it runs
  hpc-dynamo report name=afternoon --out roles.svg"""
NOTES = """\
The table has the intervals with a decision to change something. The plot has all intervals."""


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    about = f"file of the plot: .png, .svg or .pdf (RUN/{PLOT})"
    parser.add_argument("--out", type=path, metavar="FILE", help=about)


def run(args: Namespace) -> int:
    """Print the planner's decisions and write the plot."""
    run = find_run(args, _has_planner, "run with a planner")
    history = planner_history(run)
    OUT.print(decision_table(history))
    for line in summary_lines(history):
        print_line(line)
    file = args.out or run.path / PLOT
    try:
        draw(file, title(run, history), panels(history))
    except MissingDependency as e:
        print_line(f"no plot: {e}")
    except (OSError, ValueError) as e:  # a folder that is not writable, or an unknown format
        raise ConfigError(f"{file} cannot be written: {e}", hint="--out planner.png") from e
    else:
        print_line(f"plot: {file}")
    return 0


def _has_planner(run: Run) -> bool:
    return any(attempt.planner_file.exists() for attempt in run.attempts())


def planner_history(run: Run) -> PlannerHistory:
    """Return the records of all attempts. Raises ConfigError if there is no decision."""
    attempts = run.attempts()
    files = [attempt.planner_file for attempt in attempts]
    records = [record for file in files for record in jsonl.read(file, PlannerRecord)]
    if not any(record.decision for record in records):
        hint = "planner=load or planner=sla; the first decision comes after planner.interval_s"
        raise ConfigError(f"{run.path} has no planner decision", hint=hint)
    return PlannerHistory(records, attempts[-1].config().planner)
