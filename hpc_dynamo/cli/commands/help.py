"""`hpc-dynamo help`: the help of a verb, of the overrides, or of the exit codes."""

from argparse import ArgumentParser, Namespace

from hpc_dynamo.cli import parser as parsers
from hpc_dynamo.cli.commands import VERBS
from hpc_dynamo.cli.help_text import OVERRIDES, exit_codes_table, top_level

EXAMPLES = """\
  hpc-dynamo help serve
  hpc-dynamo help overrides"""

TOPICS = {"overrides": lambda: OVERRIDES, "exit-codes": exit_codes_table}


def add_arguments(parser: ArgumentParser) -> None:
    choices = [*VERBS, *TOPICS]
    about = f"a verb, or {' or '.join(TOPICS)}"
    parser.add_argument("topic", nargs="?", choices=choices, metavar="VERB|TOPIC", help=about)
    parser.set_defaults(overrides=[])


def run(args: Namespace) -> int:
    if args.topic in TOPICS:
        print(TOPICS[args.topic]())
    elif args.topic:
        parsers.verb_parser(args.topic).print_help()
    else:
        print(top_level(VERBS), end="")
    return 0
