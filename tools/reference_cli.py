"""Reference page of the command line, generated from its parsers."""

from argparse import Action

from hpc_dynamo.cli.commands import VERBS, load
from hpc_dynamo.cli.parser import verb_parser
from hpc_dynamo.errors import ExitCode

PAGE = "cli.md"
INTRODUCTION = """
# Command line

`hpc-dynamo VERB [option ...] [FIELD=VALUE ...]`. Options may stand between overrides.
[Command line](../guides/command-line.md) explains the output, Ctrl-C and shell completion.
"""


def page() -> str:
    """Return the page as Markdown."""
    summary = ["| verb | use |", "|---|---|"]
    summary += [f"| [`{verb}`](#{verb}) | {about} |" for verb, about in VERBS.items()]
    verbs = [text for verb in VERBS for text in _verb(verb)]
    return "\n".join([INTRODUCTION, *summary, "", *verbs, *_exit_codes()])


def _verb(verb: str) -> list[str]:
    command = load(verb)
    rows = [_row(action) for action in verb_parser(verb)._actions if action.dest != "help"]
    examples = "\n".join(line.removeprefix("  ") for line in command.EXAMPLES.splitlines())
    notes = [command.NOTES, ""] if command.NOTES else []
    table = ["| argument | meaning |", "|---|---|", *rows, ""]
    about = f"{VERBS[verb][0].upper()}{VERBS[verb][1:]}."
    return [f"## {verb}", "", about, "", *table, "```shell", examples, "```", "", *notes]


def _row(action: Action) -> str:
    choices = "|".join(map(str, action.choices or ()))
    value = "" if action.nargs == 0 else str(action.metavar or choices or action.dest)
    names = ", ".join(action.option_strings)
    cells = f"`{' '.join(filter(None, (names, value)))}`", action.help or ""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _exit_codes() -> list[str]:
    rows = [f"| {code} | {code.meaning} |" for code in ExitCode]
    return ["## Exit codes", "", "| code | meaning |", "|---|---|", *rows]
