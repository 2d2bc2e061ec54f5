"""Command-line options: paths, and the error for an option that no verb has."""

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from hpc_dynamo.cli.compose import roles
from hpc_dynamo.cli.overrides.suggest import suggestion

RUN_VERBS = ("chat", "endpoint", "status", "report", "logs", "stop")  # they take no overrides
SWEEP = ("-m", "--multirun")  # Hydra's options
NAMED = ("batch", "serve", "profile")  # each run of these needs a folder of its own


def path(text: str) -> Path:
    """Type of an option that names a file: a shell does not expand `~` in `--option=~/file`."""
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


def unknown_options(argv: Sequence[str], args: Namespace, unknown: Sequence[str]) -> str:
    """Return the error for options that the verb does not have: what to write instead."""
    verb, own = args.own, _options(args.own)
    name = verb.prog.rpartition(" ")[2]
    if sweep := [option for option in unknown if option in SWEEP]:
        return f"unknown option {sweep[0]}: sweeps are not supported\n  try: {_loop(argv, name)}"
    meant = [_instead(argv, option, name, args) for option in unknown]
    if all(meant):
        return f"unknown options: {' '.join(unknown)}\n  try: {' '.join(meant)}"
    strange = " ".join(option for option, words in zip(unknown, meant, strict=True) if not words)
    rest = " ".join(filter(None, meant))
    instead = f"\n  the others are overrides here: {rest}" if rest else ""
    what = f"unknown options: {strange}; options of {name}: {own}{instead}"
    return f"{what}\n  try: hpc-dynamo {name} --help"


def _options(verb: ArgumentParser) -> str:
    return ", ".join("/".join(a.option_strings) for a in verb._actions if a.option_strings)


def _instead(argv: Sequence[str], option: str, verb: str, args: Namespace) -> str:
    """Return the override that an unknown option probably meant; empty if there is none."""
    name, is_, value = option.partition("=")
    plain = name.lstrip("-")
    if verb in RUN_VERBS and plain not in ("name", "runs", "runs_dir"):
        return ""
    words = [word for word in args.overrides if "=" in word]
    value = value if is_ else _next(argv, option)
    return suggestion(plain, value, verb, roles(words, args.config_dir))


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
