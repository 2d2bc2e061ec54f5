"""`hpc-dynamo VERB [overrides]`: parse, call the verb, turn errors into exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.markup import escape

from hpc_dynamo.cli import verbs
from hpc_dynamo.cli.help_text import DESCRIPTION, EXAMPLES, EXIT_CODES, OVERRIDES, arguments
from hpc_dynamo.cli.render.console import ERR, replace_unencodable
from hpc_dynamo.cli.unknown_options import unknown_options
from hpc_dynamo.errors import HpcDynamoError, file_error_in


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code, see cli/help.py."""
    replace_unencodable(sys.stdout, sys.stderr)
    args = _parse(argv)
    try:
        code: int = args.call(args)
        sys.stdout.flush()
        return code
    except HpcDynamoError as e:
        return _refused(e)
    except KeyboardInterrupt:
        ERR.print("interrupted")
        return 130
    except BrokenPipeError:  # `| head` has seen enough; Python's own flush at exit must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ExceptionGroup) as e:
        known = file_error_in(e, near=_stdout())
        if known is None:
            raise
        return _refused(known)


def _stdout() -> Path | None:
    """Return the file that standard output goes to: its disk may be the full one."""
    path = Path("/proc/self/fd/1").resolve()
    return path if path.exists() else None


def _refused(error: HpcDynamoError) -> int:
    ERR.print(f"[bold red]error:[/] {escape(str(error))}")
    return error.exit_code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options may stand among the overrides, which argparse alone does not allow in verbs."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        args.own.error(unknown_options(argv or sys.argv[1:], args, unknown))
    args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hpc-dynamo",
        description=DESCRIPTION,
        formatter_class=form,
        epilog="examples:\n" + "\n".join(EXAMPLES.values()) + f"\n\n{OVERRIDES}\n\n{EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=version("hpc-dynamo"))
    rows = parser.add_subparsers(required=True, metavar="VERB")
    for name, (call, summary) in verbs.VERBS.items():
        epilog = f"examples:\n{EXAMPLES[name]}\n\n{OVERRIDES}\n\n{EXIT_CODES}"
        verb = rows.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=form
        )
        verb.set_defaults(call=call, own=verb)
        arguments(name, verb)
    return parser
