"""`hpc-dynamo status`: job, workers and progress of a run. On a terminal, live until its end."""

import sys
from argparse import ArgumentParser, Namespace

from hpc_dynamo import launch
from hpc_dynamo.cli.arguments import add_run
from hpc_dynamo.cli.render.console import OUT, can_redraw
from hpc_dynamo.cli.render.endpoint import instructions
from hpc_dynamo.cli.render.live import show_until_end
from hpc_dynamo.cli.render.status import status
from hpc_dynamo.cli.run_lookup import find_run, serving_attempt
from hpc_dynamo.cli.run_watcher import RunWatcher

EXAMPLES = """\
  hpc-dynamo status  # the newest run in runs/
  hpc-dynamo status prompts  # a run by its name
  hpc-dynamo status --once  # print it and return"""
NOTES = ""


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--once", action="store_true", help="print the status and return")


def run(args: Namespace) -> int:
    """Print the status, or show it live until the run ends."""
    attempt = serving_attempt(find_run(args))
    job = launch.find_job(attempt)
    state = job.state() if job else None
    ended = launch.current_outcome(attempt, job)
    active = job and state and state[0] is not launch.JobState.ended and not ended
    if active and (endpoint := attempt.endpoint()):
        OUT.print(instructions(attempt, endpoint), markup=False)
    if job and active and can_redraw(sys.stdout) and not args.once:
        watcher = RunWatcher(attempt, job)
        show_until_end(watcher, OUT)
        state = watcher.state, watcher.detail
    OUT.print(status(attempt, state))
    return 0
