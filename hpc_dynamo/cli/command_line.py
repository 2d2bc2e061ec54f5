"""`hpc-dynamo VERB [option ...] [FIELD=VALUE ...]`: run the verb, turn errors into exit codes."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from hpc_dynamo.cli.parser import parse
from hpc_dynamo.cli.render.console import ERR, replace_unencodable
from hpc_dynamo.descriptors import raise_descriptor_limit
from hpc_dynamo.errors import ExitCode, HpcDynamoError, file_error_in
from hpc_dynamo.printable import LineFormatter


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    raise_descriptor_limit()
    replace_unencodable(sys.stdout, sys.stderr)
    if logging.lastResort:  # prints warnings if no handler is set
        logging.lastResort.setFormatter(LineFormatter("%(message)s"))
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        code: int = args.command.run(args)
        sys.stdout.flush()
        return code
    except HpcDynamoError as e:
        return _print_error(e)
    except KeyboardInterrupt:
        ERR.print("interrupted")
        return ExitCode.interrupted
    except BrokenPipeError:
        # `| head` has read enough. Python's own flush at exit must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.done
    except (OSError, ExceptionGroup) as e:
        known = file_error_in(e, near=_stdout_file())
        if known is None:
            raise
        return _print_error(known)


def check_command_line(argv: Sequence[str]) -> None:
    """Make the checks that this command line passes before it starts a job. Starts nothing.

    They are the checks of a Slurm login node, unless `cluster.launcher` is set. They need neither
    Slurm nor the files of the input and the model. Raises HpcDynamoError, or SystemExit for an
    unknown verb or option.
    """
    args = parse(argv)
    if check := getattr(args.command, "check", None):  # only verbs that compose a configuration
        check(args)


def _stdout_file() -> Path | None:
    """Return the file that standard output goes to: its disk may be the full one."""
    path = Path("/proc/self/fd/1").resolve()
    return path if path.exists() else None


def _print_error(error: HpcDynamoError) -> int:
    ERR.print(f"[bold red]error:[/] {escape(str(error))}")
    return error.exit_code
