"""`hpc-dynamo VERB [overrides]`: parse, call the verb, turn errors into exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from rich.console import Console
from rich.markup import escape

from hpc_dynamo.cli import verbs
from hpc_dynamo.cli.help import DESCRIPTION, EXAMPLES, OVERRIDES, arguments
from hpc_dynamo.errors import HpcDynamoError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Exit codes: 0 done, 1 trying again may help, 2 an unknown option or verb, 3 trying again cannot
    help (for a batch: no request was answered), 4 a batch is finished, but some of its requests
    failed, 130 Ctrl-C.
    """
    args = _parse(argv)
    console = Console(stderr=True, soft_wrap=True)
    try:
        code: int = args.call(args)
        sys.stdout.flush()
        return code
    except HpcDynamoError as e:
        console.print(f"[bold red]error:[/] {escape(str(e))}", highlight=False, emoji=False)
        return e.exit_code
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    except BrokenPipeError:  # `| head` has seen enough; Python's own flush at exit must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options may stand among the overrides, which argparse alone does not allow in verbs."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unknown options: {' '.join(unknown)}")
    args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hpc-dynamo",
        description=DESCRIPTION,
        formatter_class=form,
        epilog="examples:\n" + "\n".join(EXAMPLES.values()) + f"\n\n{OVERRIDES}",
    )
    parser.add_argument("--version", action="version", version=version("hpc-dynamo"))
    rows = parser.add_subparsers(required=True, metavar="VERB")
    for name, (call, summary) in verbs.VERBS.items():
        epilog = f"examples:\n{EXAMPLES[name]}\n\n{OVERRIDES}"
        verb = rows.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=form
        )
        verb.set_defaults(call=call)
        arguments(name, verb)
    return parser
