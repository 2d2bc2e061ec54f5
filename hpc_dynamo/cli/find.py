"""The run, and its newest attempt, that the words of a command line mean."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.errors import ConfigError, RunBusy
from hpc_dynamo.run import Attempt, Run


def find(
    args: Namespace, wanted: Callable[[Run], bool] = lambda run: True, what: str = "run"
) -> Run:
    """The run that a folder, `name=`, or nothing (the newest that is wanted) points to."""
    words = list(args.overrides)
    if words and "=" not in words[0]:
        return _existing(Run(Path(words[0])))
    config = compose(words, args.config_dir)
    runs = Path(config.runs)
    if config.name:
        return _existing(Run(runs / config.name))
    newest = sorted(runs.glob("*/attempts"), key=lambda p: p.stat().st_mtime, reverse=True)
    for run in (Run(folder.parent) for folder in newest):
        if wanted(run):
            return run
    raise ConfigError(f"runs={runs} holds no {what}", hint="name=…, runs=… or the run's folder")


def latest(run: Run) -> Attempt:
    attempts = run.attempts()
    if not attempts:
        raise RunBusy(f"{run.path} has no attempt yet", hint="hpc-dynamo batch …")
    return attempts[-1]


def split(words: Sequence[str], is_ours: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Where a verb takes words of its own: those that point to a run, and the others.

    `is_ours` tells a word of the verb's own from a run's folder, which comes first or not at all.
    """
    run = [word for word in words if word.startswith(("name=", "runs="))]
    own = [word for word in words if word not in run]
    if own and not run and not is_ours(own[0]):
        run.append(own.pop(0))
    return run, own


def is_run(word: str) -> bool:
    return bool(Run(Path(word)).attempts())


def _existing(run: Run) -> Run:
    if not run.attempts():
        near = ", ".join(sorted(p.name for p in run.path.parent.glob("*") if p.is_dir()))
        raise ConfigError(f"{run.path} is not a run", hint=f"known: {near or 'none'}")
    return run
