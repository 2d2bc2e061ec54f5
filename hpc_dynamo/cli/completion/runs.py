"""Candidates for verbs that take a run: names of runs, and of their logs."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpc_dynamo.cli.arguments import RUNS_DIR
from hpc_dynamo.cli.completion.files import files
from hpc_dynamo.config import Config
from hpc_dynamo.run import Run

WORDS = (("name=", "name of the run"), ("runs_dir=", "folder of runs"))


def candidates(verb: str, before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    """Yield names of runs, the newest first; for `logs` also the logs of the run."""
    given = [word.partition("=")[2] for word in before if word.startswith(RUNS_DIR)]
    folder = Path(given[-1] if given else Config().runs_dir).expanduser()
    if current.startswith("runs_dir="):
        yield from files("runs_dir=", current.removeprefix("runs_dir="))
        return
    prefix = "name=" if current.startswith("name=") else ""
    yield from ((f"{prefix}{run.path.name}", "") for run in _runs(folder))
    if not prefix:
        yield from WORDS
    if "/" in current:
        yield from files("", current)
    if verb == "logs" and not prefix:
        yield from _logs(folder, before)


def _runs(folder: Path) -> list[Run]:
    """Return the runs of this user in a folder, the newest first."""
    found = [(path.stat(), path.parent) for path in folder.glob("*/attempts")]
    own = [(stat.st_mtime, path) for stat, path in found if stat.st_uid == os.geteuid()]
    return [Run(path) for _, path in sorted(own, reverse=True)]


def _logs(folder: Path, before: Sequence[str]) -> Iterator[tuple[str, str]]:
    names = [word.removeprefix("name=") for word in before if not word.startswith(("-", *RUNS_DIR))]
    run = Run(Path(names[0]) if names and "/" in names[0] else folder / names[0]) if names else None
    run = run or next(iter(_runs(folder)), None)
    for attempt in run.attempts()[-1:] if run else ():
        yield "head", "log of the head"
        for log in sorted(attempt.logs.glob("*.log")):
            yield log.stem.removeprefix("worker-"), ""
