"""`hpc-dynamo help`: the help of a verb, of the overrides, of one field or of the exit codes."""

from argparse import ArgumentParser, Namespace

from hpc_dynamo.cli import parser as parsers
from hpc_dynamo.cli.commands import VERBS
from hpc_dynamo.cli.completion.fields import find_field
from hpc_dynamo.cli.help_text import TOPICS, top_level
from hpc_dynamo.config.schema.describe import default_text, limits, type_name
from hpc_dynamo.errors import unknown_name

EXAMPLES = """\
  hpc-dynamo help serve
  hpc-dynamo help overrides
  hpc-dynamo help planner.mode"""
NOTES = ""


def add_arguments(parser: ArgumentParser) -> None:
    about = f"a verb, a field of the configuration, {' or '.join(TOPICS)}"
    parser.add_argument("topic", nargs="?", metavar="VERB|FIELD|TOPIC", help=about)
    parser.set_defaults(overrides=[])


def run(args: Namespace) -> int:
    """Print the help of a verb, a field or a topic."""
    if args.topic is None:
        print(top_level(VERBS), end="")
    elif args.topic in VERBS:
        parsers.verb_parser(args.topic).print_help()
    elif args.topic in TOPICS:
        print(TOPICS[args.topic]())
    else:
        print(_field_text(args.topic))
    return 0


def _field_text(name: str) -> str:
    """Return type, default and meaning of a field. Raises ConfigError if there is none."""
    field = find_field(name)
    if field is None:
        raise unknown_name("topic", name, [*VERBS, *TOPICS])
    facts = ", ".join(filter(None, (type_name(field.type), limits(field))))
    default = default_text(field.default)
    return f"{name} ({facts})\n  {field.info.help}\n  default: {default or 'empty'}"
