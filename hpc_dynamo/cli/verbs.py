"""The table of verbs, and those of few words."""

import sys
from argparse import Namespace
from collections.abc import Callable

from hpc_dynamo import launch
from hpc_dynamo.cli.commands.chat import chat
from hpc_dynamo.cli.commands.doctor import doctor
from hpc_dynamo.cli.commands.logs import logs
from hpc_dynamo.cli.commands.plan import plan
from hpc_dynamo.cli.commands.report import report
from hpc_dynamo.cli.commands.route import route
from hpc_dynamo.cli.commands.simulate import simulate
from hpc_dynamo.cli.follow import follow
from hpc_dynamo.cli.launch_run import batch, profile, serve
from hpc_dynamo.cli.render import serving
from hpc_dynamo.cli.render import status as views
from hpc_dynamo.cli.render.console import OUT, can_redraw
from hpc_dynamo.cli.render.live import show_until_end
from hpc_dynamo.cli.run_lookup import find_endpoint, find_run, serving_attempt
from hpc_dynamo.cli.run_watcher import RunWatcher
from hpc_dynamo.launch.extra_jobs import clear


def status(args: Namespace) -> int:
    """Show how a run is: its job, its workers, its progress; on a terminal until it ends."""
    attempt = serving_attempt(find_run(args))
    job = launch.find(attempt)
    state = job.state() if job else None
    known = None if attempt.outcome() else attempt.endpoint()
    goes_on = job and state and state[0] is not launch.JobState.ended and not attempt.outcome()
    if known and goes_on:
        OUT.print(serving.instructions(attempt, known), markup=False)
    if job and goes_on and can_redraw(sys.stdout) and not args.once:
        watch = RunWatcher(attempt, job)
        show_until_end(watch, OUT)
        state = watch.state, watch.detail
    OUT.print(views.status(attempt, state))
    return 0


def stop(args: Namespace) -> int:
    """End the job of a run on all its nodes; finished results stay."""
    run = find_run(args, prefer=lambda run: any(launch.going_on(run)))
    said = f"{run.path} is not running"
    # A job that was just asked for its successor names it at its end.
    while jobs := [(attempt, job) for attempt, job, _, _ in launch.going_on(run)]:
        for _, job in jobs:
            job.stop()
        for attempt, job in jobs:
            outcome = follow(attempt, job, OUT)
            said = f"{run.path}: {outcome.message or 'it had finished'}"
    latest = run.attempts()[-1]
    clear(latest.grown(), latest.config().cluster.silence_s)
    OUT.print(said)
    return 0


def endpoint(args: Namespace) -> int:
    """Print where a serving run answers now: the base URL for its clients."""
    print(find_endpoint(args)[1].url)
    return 0


VERBS: dict[str, tuple[Callable[[Namespace], int], str]] = {
    "plan": (plan, "show the layout of a topology, its sbatch script or its commands"),
    "simulate": (simulate, "put a trace on a modelled job in virtual time; starts nothing"),
    "doctor": (doctor, "check the nodes of a job, and every link between them"),
    "batch": (batch, "answer every request of a JSONL file"),
    "serve": (serve, "give an OpenAI endpoint on the nodes of a job"),
    "profile": (profile, "measure an engine and a worker shape, for the planner"),
    "route": (route, "run the OpenAI endpoint and the router in front of existing engines"),
    "chat": (chat, "talk to an endpoint"),
    "endpoint": (endpoint, "print the base URL of a serving run"),
    "status": (status, "show how a run is, live on a terminal"),
    "report": (report, "show and draw what the planner of a run did"),
    "logs": (logs, "show what agents, workers and frontends wrote"),
    "stop": (stop, "end the job of a run"),
}
