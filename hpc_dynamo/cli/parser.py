"""Parsers: one for `hpc-dynamo VERB`, and one for the options of each verb."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version

from hpc_dynamo.cli.commands import VERBS, load
from hpc_dynamo.cli.help_text import PROGRAM, top_level, verb_epilog
from hpc_dynamo.cli.unknown_options import unknown_options


def parse(argv: Sequence[str]) -> Namespace:
    """Return the options of a verb, with the verb's module as `command`.

    Options may stand between overrides, which argparse does not allow. Ends the process after
    `--help` and `--version`, and with exit code 2 for an unknown verb or option.
    """
    verb, rest = _verb(argv), argv[1:]
    parser = verb_parser(verb)
    args, unparsed = parser.parse_known_args(rest)
    unknown = [word for word in unparsed if word.startswith("-")]
    if unknown:
        parser.error(unknown_options(argv, args, parser, unknown))
    args.overrides += unparsed
    args.command = load(verb)
    return args


def verb_parser(verb: str) -> ArgumentParser:
    """Return the parser for the options of one verb."""
    command = load(verb)
    parser = ArgumentParser(
        prog=f"{PROGRAM} {verb}",
        description=f"{VERBS[verb][0].upper()}{VERBS[verb][1:]}.",
        epilog=verb_epilog(command.EXAMPLES, command.NOTES),
        formatter_class=RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return parser


class _TopLevelParser(ArgumentParser):
    """Parser for the verb. Its help groups the verbs by use."""

    def format_help(self) -> str:
        return top_level(VERBS)


def _verb(argv: Sequence[str]) -> str:
    """Return the verb. Handles the options that may stand before it."""
    parser = _TopLevelParser(prog=PROGRAM, usage=f"{PROGRAM} VERB [option ...] [FIELD=VALUE ...]")
    text = f"{PROGRAM} {version('hpc-dynamo')}"
    parser.add_argument("-V", "--version", action="version", version=text)
    parser.add_argument("verb", metavar="VERB")
    verb: str = parser.parse_args(argv[:1]).verb
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        parser.error(f"unknown verb {verb!r}\n  try: {meant}known: {', '.join(VERBS)}")
    return verb
