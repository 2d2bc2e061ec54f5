"""Find the run, and its attempt, that a command line refers to."""

import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from hpc_dynamo.cli.arguments import RUNS_DIR
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.endpoint_check import require_live_endpoint
from hpc_dynamo.config import Config, Task
from hpc_dynamo.errors import ConfigError, HpcDynamoError, RunBusy
from hpc_dynamo.messages import Endpoint
from hpc_dynamo.run import Attempt, Run
from hpc_dynamo.run.privacy import require_private_folder


def find_run(
    args: Namespace,
    is_wanted: Callable[[Run], bool] = lambda run: True,
    description: str = "run",
    *,
    prefer: Callable[[Run], bool] = lambda run: True,
) -> Run:
    """Return the run given by folder, name or `name=`. Raises ConfigError if there is none.

    Without an argument this is the newest run of this user that `is_wanted`, if possible one to
    `prefer`. Raises FileRefused if another user could have written to the folder: its files name
    jobs, URLs and files, and may be pipes or have any size.
    """
    run = _find_run(args, is_wanted, description, prefer)
    require_private_folder(run.path, make_private=False)
    return _existing(run)


def _find_run(
    args: Namespace,
    is_wanted: Callable[[Run], bool],
    description: str,
    prefer: Callable[[Run], bool],
) -> Run:
    words = list(args.overrides)
    first = words.pop(0) if words and "=" not in words[0] else ""
    if first and _is_folder(first):
        return Run(Path(first).absolute())
    config = compose(words, args.config_dir)
    runs = Path(config.runs_dir).absolute()
    if first or config.name:
        return Run(runs / (first or config.name))
    found = [run for run in own_runs(runs) if is_wanted(run)]
    if not found:
        hint = "a run's name or folder; runs_dir=FOLDER selects another folder of runs"
        raise ConfigError(f"{runs} holds no {description}", hint=hint)
    return next(filter(prefer, found), found[0])


def own_runs(folder: Path) -> list[Run]:
    """Return the runs of this user in a folder, the newest first. Links are left out."""
    found = []
    for attempts in folder.glob("*/attempts"):
        with suppress(OSError):  # removed meanwhile
            owners = {attempts.parent.lstat().st_uid, attempts.lstat().st_uid}
            if owners == {os.geteuid()} and not attempts.parent.is_symlink():
                found.append((attempts.stat().st_mtime, attempts.parent))
    return [Run(path) for _, path in sorted(found, reverse=True)]


def _is_folder(word: str) -> bool:
    """Return True for a path, and for a bare name only if it is a run here."""
    return "/" in word or word in (".", "..") or is_run(word)


def serving_attempt(run: Run) -> Attempt:
    """Return the newest attempt; during a job handover, the one that still serves.

    Raises RunBusy if there is no attempt yet.
    """
    attempts = run.attempts()
    if not attempts:
        raise RunBusy(f"{run.path} has no attempt yet", hint="hpc-dynamo batch …")
    newest, before = attempts[-1], attempts[-2:-1]
    if before and not _answers(newest) and _answers(before[0]) and _hands_over(before[0], newest):
        return before[0]
    return newest


def _answers(attempt: Attempt) -> bool:
    return attempt.endpoint() is not None and attempt.outcome() is None


def _hands_over(attempt: Attempt, to: Attempt) -> bool:
    status = attempt.status()
    return bool(status and status.successor and status.successor.attempt == to.number)


def find_endpoint(args: Namespace) -> tuple[Attempt, Endpoint]:
    """Return the attempt and the endpoint of a serving run.

    Raises HpcDynamoError if the run has no endpoint now, or is dead.
    """
    run = find_run(args, _serves, "serving run")
    attempt = serving_attempt(run)
    endpoint = attempt.endpoint()
    if endpoint is None or attempt.outcome():
        raise _no_endpoint(attempt)
    require_live_endpoint(attempt, endpoint)
    return attempt, endpoint


def _serves(run: Run) -> bool:
    with suppress(HpcDynamoError):  # incomplete, or written by another version
        return any(attempt.config().task is Task.serve for attempt in run.attempts()[-1:])
    return False


def _no_endpoint(attempt: Attempt) -> HpcDynamoError:
    outcome, status, path = attempt.outcome(), attempt.status(), attempt.run.path
    if attempt.config().task is not Task.serve:
        return ConfigError(f"{path} is not a serving run", hint="hpc-dynamo serve …")
    if outcome:
        what = f"{path} has ended: {outcome.message or 'all done'}"
        hint = "" if "try: " in what else "hpc-dynamo serve …, or chat --url URL"
        return HpcDynamoError(what, hint=hint)
    phase = status.phase if status else "waiting for its nodes"
    hint = f"hpc-dynamo status {shlex.quote(str(path))}"
    return HpcDynamoError(f"{path} has no endpoint yet: {phase}", hint=hint)


def split_words(words: Sequence[str], is_own: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Return the words that refer to a run, and the others, which the verb reads itself.

    A run's name or folder comes first, if given. `is_own(word)` is False for it.
    """
    run = [word for word in words if word.startswith(("name=", *RUNS_DIR))]
    own = [word for word in words if word not in run]
    named = any(word.startswith("name=") for word in run)
    if own and not named and not is_own(own[0]):
        run.insert(0, own.pop(0))
    return run, own


def is_run(word: str) -> bool:
    """Return True for the folder of a run."""
    return bool(Run(Path(word)).attempts())


def is_run_name(word: str, words: Sequence[str]) -> bool:
    """Return True for the bare name of a run below `runs_dir=`, which may be one of `words`."""
    given = [w.partition("=")[2] for w in words if w.startswith(RUNS_DIR)]
    return "/" not in word and is_run(str(Path(given[-1] if given else Config().runs_dir) / word))


def _existing(run: Run) -> Run:
    if run.attempts():
        return run
    path = run.path.absolute()
    with suppress(FileNotFoundError, NotADirectoryError):
        os.listdir(path / "attempts")  # raises PermissionError for another user's run
    near = ", ".join(sorted(run.path.name for run in own_runs(path.parent)))
    raise ConfigError(f"{path} is not a run", hint=f"known: {near or 'none'}")
