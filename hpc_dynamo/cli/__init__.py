"""The command line: verbs over a composed configuration.

    command_line     parses the arguments, runs the verb, turns errors into exit codes
    parser, help_text, arguments, unknown_options    options of the verbs, and `--help`
    commands/        one file for each verb, and the table of verbs
    compose, model_overrides, overrides/    from overrides and `conf/` to the configuration
    task_config, launch_checks, node_resources, model_checks    checks before a job starts
    launch_run, run_folder, run_lookup      start a run, create its folder, find it again
    follow, run_watcher, missing_outcome, cancel    follow a job until its end
    render/          tables, progress and texts on the screen
    chat/            client of OpenAI's chat API
    completion/      shell completion

This file imports nothing heavy: console scripts import `main` from here. The imports that `main`
then needs take a second or two. Ctrl-C in that time prints one line instead of a traceback.
"""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

__all__ = ["main"]

COMPLETE = "__complete"  # first argument of a call by a completion script


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """End this process without Python's own cleanup."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == [COMPLETE]:
        from hpc_dynamo.cli.completion.candidates import print_candidates

        return print_candidates(words[1:])
    # SIGINT may be ignored, as for a command that a script starts with `&`. Keep that.
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default:
        signal.signal(signal.SIGINT, exit_at_once)
    from hpc_dynamo.cli.command_line import main as run

    if default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(words)
    finally:
        if default:
            signal.signal(signal.SIGINT, exit_at_once)
