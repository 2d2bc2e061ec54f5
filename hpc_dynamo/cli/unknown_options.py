"""Error for an option that a verb does not have, with the override that it probably means."""

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from hpc_dynamo.cli.commands import RUN_VERBS
from hpc_dynamo.cli.compose import roles
from hpc_dynamo.cli.overrides.suggest import suggestion

SWEEP = ("-m", "--multirun")  # Hydra's options
NAMED = ("batch", "serve", "profile")  # each run of these needs a folder of its own


def unknown_options(
    argv: Sequence[str], args: Namespace, parser: ArgumentParser, unknown: Sequence[str]
) -> str:
    """Return the error for options that the verb does not have: what to write instead."""
    verb = argv[0]
    if sweep := [option for option in unknown if option in SWEEP]:
        return f"unknown option {sweep[0]}: sweeps are not supported\n  try: {_loop(argv, verb)}"
    meant = [_instead(argv, option, verb, args) for option in unknown]
    if all(meant):
        return f"unknown options: {' '.join(unknown)}\n  try: {' '.join(meant)}"
    names = " ".join(option for option, words in zip(unknown, meant, strict=True) if not words)
    rest = " ".join(filter(None, meant))
    instead = f"\n  the others are overrides here: {rest}" if rest else ""
    what = f"unknown options: {names}; options of {verb}: {_option_names(parser)}{instead}"
    return f"{what}\n  try: hpc-dynamo {verb} --help"


def _option_names(parser: ArgumentParser) -> str:
    return ", ".join("/".join(a.option_strings) for a in parser._actions if a.option_strings)


def _instead(argv: Sequence[str], option: str, verb: str, args: Namespace) -> str:
    """Return the override that an unknown option probably means; empty if there is none."""
    name, is_, value = option.partition("=")
    plain = name.lstrip("-")
    if verb in RUN_VERBS and plain not in ("name", "runs", "runs_dir"):
        return ""
    words = [word for word in args.overrides if "=" in word]
    value = value if is_ else _next(argv, option)
    return suggestion(plain, value, verb, roles(words, getattr(args, "config_dir", None)))


def _next(argv: Sequence[str], option: str) -> str:
    """Return the argument after an option, unless it is an option or an override itself."""
    after = list(argv[argv.index(option) + 1 :][:1]) if option in argv else []
    return next((word for word in after if not word.startswith("-") and "=" not in word), "")


def _loop(argv: Sequence[str], verb: str) -> str:
    """Return a shell loop over the values of the first override that has several of them."""
    words = [word for word in argv[1:] if word not in SWEEP]
    swept = next(
        (word for word in words if "," in word and "=" in word), "engine.max_num_seqs=64,128"
    )
    field, _, values = swept.partition("=")
    each = [shlex.quote(word) for word in words if word != swept]
    if verb in NAMED and not any(word.startswith("name=") for word in words):
        each.append('name="run-$value"')
    listed = " ".join(shlex.quote(value) for value in values.strip("[]").split(","))
    command = " ".join(["hpc-dynamo", verb, *each, f'{shlex.quote(field)}="$value"'])
    return f"for value in {listed}; do {command}; done"
