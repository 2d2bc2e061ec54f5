"""Candidates for options of a verb and their values."""

from argparse import Action
from collections.abc import Iterator, Sequence

from hpc_dynamo.cli.completion.files import files
from hpc_dynamo.cli.parser import verb_parser

TOP_LEVEL = (("--help", "show the help"), ("--version", "show the version"))


def candidates(verb: str, before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    """Yield the options of a verb, or the values of the option or argument at the cursor."""
    actions = verb_parser(verb)._actions
    action = _action(actions, before[-1:])
    if action is None and not current.startswith("-"):
        action = next((a for a in actions if not a.option_strings), None)
    if action is None:
        for each in actions:
            yield from ((name, each.help or "") for name in each.option_strings if name[:2] == "--")
    elif action.choices:
        yield from ((str(choice), "") for choice in action.choices)
    elif action.metavar in ("FILE", "DIR"):
        yield from files("", current)


def takes_value(verb: str, before: Sequence[str]) -> bool:
    """Return True if `before` ends with an option whose value comes next."""
    last = before[-1:]
    if not last or not last[0].startswith("-"):
        return False
    return _action(verb_parser(verb)._actions, last) is not None


def _action(actions: Sequence[Action], last: Sequence[str]) -> Action | None:
    found = (a for a in actions if last and last[0] in a.option_strings and a.nargs != 0)
    return next(found, None)
