"""`hpc-dynamo stop`: end the job of a run on all its nodes. Finished results are kept."""

from argparse import ArgumentParser, Namespace

from hpc_dynamo import launch
from hpc_dynamo.cli.arguments import add_run
from hpc_dynamo.cli.follow import follow
from hpc_dynamo.cli.render.console import OUT
from hpc_dynamo.cli.run_lookup import find_run
from hpc_dynamo.launch.extra_jobs import stop_leftover_jobs

EXAMPLES = """\
  hpc-dynamo stop  # the newest active run
  hpc-dynamo stop prompts  # the batch command resumes it later"""
NOTES = ""


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)


def run(args: Namespace) -> int:
    """Stop all active attempts and wait for their end."""
    run = find_run(args, prefer=lambda run: any(launch.live_attempts(run)))
    message = f"{run.path} is not running"
    # A job that was just asked for its successor names it at its end, hence the loop.
    while jobs := [(attempt, job) for attempt, job, _, _ in launch.live_attempts(run)]:
        for _, job in jobs:
            job.stop()
        for attempt, job in jobs:
            outcome = follow(attempt, job, OUT)
            message = f"{run.path}: {outcome.message or 'it had finished'}"
    latest = run.attempts()[-1]
    stop_leftover_jobs(latest.extra_jobs(), latest.config().cluster.heartbeat_timeout_s)
    OUT.print(message)
    return 0
