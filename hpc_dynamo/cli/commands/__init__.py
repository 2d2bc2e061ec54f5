"""The verbs of the command line. The module `commands/NAME.py` implements the verb NAME:

    EXAMPLES, NOTES        shown by `--help`; a test passes examples to `check_command_line`
    add_arguments(parser)  declares its options
    run(args)              executes it and returns its exit code
    check(args)            only if it composes a configuration: makes every check before the start

To add a verb, add its module and a row here. Modules are imported when their verb is used.
"""

from argparse import ArgumentParser, Namespace
from importlib import import_module
from typing import Protocol, cast

VERBS = {
    "plan": "show the layout of a run, its sbatch script or the commands of its engines",
    "simulate": "replay a trace against a simulated deployment; submits nothing",
    "doctor": "check the nodes of your cluster and the links between them",
    "batch": "answer every request of a JSONL file",
    "serve": "run an OpenAI endpoint on the nodes of a job",
    "profile": "measure an engine, for the planner and the simulation",
    "route": "run the OpenAI endpoint and the router in front of existing engines",
    "chat": "chat with an endpoint",
    "endpoint": "print the base URL of a serving run",
    "status": "show the state of a run, live on a terminal",
    "report": "show and plot the decisions of a run's planner",
    "chaos": "inject random faults into an endpoint or a batch of yours",
    "logs": "show the logs of agents, workers and frontends",
    "stop": "stop the job of a run",
    "completion": "print the completion script for bash, zsh or fish",
    "help": "show the help of a verb, `overrides` or `exit-codes`",
}

# Verbs that take a run instead of overrides.
RUN_VERBS = ("chat", "endpoint", "status", "report", "chaos", "logs", "stop")


class Command(Protocol):
    """Module that implements a verb."""

    EXAMPLES: str
    NOTES: str

    def add_arguments(self, parser: ArgumentParser) -> None: ...

    def run(self, args: Namespace) -> int: ...


def load(verb: str) -> Command:
    """Return the module of a verb in `VERBS`."""
    return cast(Command, import_module(f"{__name__}.{verb}"))
