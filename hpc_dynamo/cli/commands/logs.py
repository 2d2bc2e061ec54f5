"""`hpc-dynamo logs`: the end of one log or the list of all, and with --follow what comes."""

import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.table import Table
from rich.text import Text

from hpc_dynamo import launch
from hpc_dynamo.cli.render.console import OUT
from hpc_dynamo.cli.run_lookup import find_run, is_run, is_run_name, serving_attempt, split_words
from hpc_dynamo.cli.run_watcher import POLL_S, RunWatcher
from hpc_dynamo.config import Task
from hpc_dynamo.errors import ConfigError, unknown_name
from hpc_dynamo.run import Attempt

TARGET = re.compile(r"\d+|head|(?:worker|agent|frontend)-\d+")
BLOCK_BYTES = 1 << 16


class LogTail:
    """The lines of a file that others append to; it may not be there yet.

    A file that has become shorter was begun anew, and is read from its start.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._offset, self._part = 0, b""

    def last(self, count: int) -> list[str]:
        """The last whole lines, read from the end backwards; `read` goes on after them."""
        try:
            with self.file.open("rb") as file:
                end = start = file.seek(0, os.SEEK_END)
                data = b""
                while start and data.count(b"\n") <= count:
                    size = min(start, BLOCK_BYTES)
                    start = file.seek(start - size)
                    data = file.read(size) + data
        except FileNotFoundError:
            return []
        self._offset = end
        lines = self._whole(data)
        return lines[max(0, len(lines) - count) :]

    def read(self) -> list[str]:
        """Whole lines that are new since the last call."""
        try:
            with self.file.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._offset, self._part = 0, b""
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        return self._whole(self._part + data)

    def rest(self) -> list[str]:
        """What stands after the last newline, when no more is to come."""
        part, self._part = self._part, b""
        return [_text(part)] if part else []

    def _whole(self, data: bytes) -> list[str]:
        *lines, self._part = data.split(b"\n")
        return [_text(line) for line in lines]


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def logs(args: Namespace) -> int:
    """Show the end of a log, or which logs there are; follow them with -f."""
    words, targets = split_words(args.overrides, lambda word: _is_target(word, args.overrides))
    attempt = serving_attempt(find_run(Namespace(overrides=words, config_dir=args.config_dir)))
    if len(targets) > 1:
        raise ConfigError(f"one log at a time, not {' '.join(targets)}", hint="all: no name and -f")
    known = _known(attempt)
    if not targets and not args.follow:
        OUT.print(f"{attempt.logs} (what Slurm or submitit said: {attempt.submitit})", markup=False)
        OUT.print(_listed(known), soft_wrap=False)  # cut lines, not columns
        return 0
    chosen = {targets[0]: _choose(known, targets[0])} if targets else known
    with suppress(KeyboardInterrupt):
        _show(attempt, chosen, args.lines, follow=args.follow, all_=not targets)
    return 0


def _is_target(word: str, words: Sequence[str]) -> bool:
    """A folder's name that reads like a target is to be written as ./name."""
    run = "/" in word or is_run(word) or is_run_name(word, words)
    return bool(TARGET.fullmatch(word)) or not run


def _known(attempt: Attempt) -> dict[str, Path]:
    """Name and file of every log that is there or will be, the head first."""
    plan, serves = attempt.plan(), attempt.config().task is Task.serve
    known = {"head": attempt.agent_log(0)}
    known |= {f"agent-{n}": attempt.agent_log(n) for n in range(1, plan.nodes)}
    known |= {"frontend-0": attempt.frontend_log(0)} if serves else {}
    known |= {str(w.rank): attempt.worker_log(w.rank) for w in plan.workers}
    return known | _further(attempt, known)


def _further(attempt: Attempt, known: dict[str, Path]) -> dict[str, Path]:
    """Logs that the plan does not tell of, such as of further frontends."""
    files = sorted(set(attempt.logs.glob("*.log")) - set(known.values()))
    return {file.stem.removeprefix("worker-"): file for file in files}


def _choose(known: dict[str, Path], target: str) -> Path:
    also = {file.stem: file for file in known.values()}
    if target not in known | also:
        raise unknown_name("log", target, known)
    return (known | also)[target]


def _listed(known: dict[str, Path]) -> Table:
    """Return the table of logs. Only last lines are cut, and only on a terminal."""
    table = Table(expand=sys.stdout.isatty())
    table.add_column("log", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("last line", no_wrap=True, overflow="ellipsis", ratio=1)  # what is left
    for name, file in known.items():
        last = LogTail(file)
        lines = [*last.last(1), *last.rest()]
        size = f"{file.stat().st_size:,}" if file.exists() else "-"
        table.add_row(name, size, Text(lines[-1] if lines else ""))
    return table


def _show(
    attempt: Attempt, chosen: dict[str, Path], lines: int, *, follow: bool, all_: bool
) -> None:
    """The ends, and what comes until the run does; of `all_` also logs that appear late."""
    tails = {name: LogTail(file) for name, file in chosen.items()}
    if not all_:
        print(f"==> {next(iter(chosen.values()))} <==", flush=True)
    for name, tail in tails.items():
        _say(name if all_ else "", tail.last(lines))
    job = launch.find(attempt)
    watch = RunWatcher(attempt, job) if job and follow else None
    while watch and watch.outcome() is None:
        time.sleep(POLL_S)
        if all_:
            known = {name: tail.file for name, tail in tails.items()}
            tails |= {name: LogTail(file) for name, file in _further(attempt, known).items()}
        for name, tail in tails.items():
            _say(name if all_ else "", tail.read())
    for name, tail in tails.items():
        _say(name if all_ else "", [*tail.read(), *tail.rest()])


def _say(name: str, lines: Iterable[str]) -> None:
    for line in lines:
        print(f"{name:>10} | {line}" if name else line, flush=True)
