"""`hpc-dynamo logs`: the list of logs, the end of one log, or with --follow its new lines."""

import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.table import Table
from rich.text import Text

from hpc_dynamo import launch
from hpc_dynamo.cli.arguments import add_run
from hpc_dynamo.cli.log_tail import LogTail
from hpc_dynamo.cli.render.console import OUT, print_line
from hpc_dynamo.cli.run_lookup import find_run, is_run, is_run_name, serving_attempt, split_words
from hpc_dynamo.cli.run_watcher import POLL_S, RunWatcher
from hpc_dynamo.config import Task
from hpc_dynamo.errors import ConfigError, unknown_name
from hpc_dynamo.printable import escape_controls, terminal_line
from hpc_dynamo.run import Attempt

LOG_NAME = re.compile(r"\d+|head|(?:worker|agent|frontend)-\d+")

# prose: ignore (commands)
EXAMPLES = """\
  hpc-dynamo logs  # the logs of the newest run
  hpc-dynamo logs 3 -n 50  # the last 50 lines of rank 3
  hpc-dynamo logs name=afternoon head -f
  hpc-dynamo logs -f  # all logs, until the run ends"""
NOTES = ""


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser, "RUN|LOG", "; a log is a rank, head, agent-N or frontend-N")
    about = "print new lines until the run ends"
    parser.add_argument("-f", "--follow", action="store_true", help=about)
    about = "number of lines from the end of each log (10)"
    parser.add_argument("-n", "--lines", type=int, default=10, metavar="N", help=about)


def run(args: Namespace) -> int:
    """Print the list of logs, or the end of the selected ones."""
    words, names = split_words(args.overrides, lambda word: _is_log_name(word, args.overrides))
    attempt = serving_attempt(find_run(Namespace(overrides=words, config_dir=args.config_dir)))
    if len(names) > 1:
        raise ConfigError(f"one log at a time, not {' '.join(names)}", hint="all: no name and -f")
    known = _known(attempt)
    if not names and not args.follow:
        print_line(f"{attempt.logs} (output of Slurm and submitit: {attempt.submitit})")
        OUT.print(_log_table(known), soft_wrap=False)  # cut lines, not columns
        return 0
    chosen = {names[0]: _choose(known, names[0])} if names else known
    with suppress(KeyboardInterrupt):
        _show(attempt, chosen, args.lines, follow=args.follow, all_=not names)
    return 0


def _is_log_name(word: str, words: Sequence[str]) -> bool:
    """Return True for a log. A run folder with such a name is written as ./NAME."""
    run = "/" in word or is_run(word) or is_run_name(word, words)
    return bool(LOG_NAME.fullmatch(word)) or not run


def _known(attempt: Attempt) -> dict[str, Path]:
    """Return name and file of every log that exists or is expected, the head first."""
    plan, serves = attempt.plan(), attempt.config().task is Task.serve
    known = {"head": attempt.agent_log(0)}
    known |= {f"agent-{n}": attempt.agent_log(n) for n in range(1, plan.nodes)}
    known |= {"frontend-0": attempt.frontend_log(0)} if serves else {}
    known |= {str(w.rank): attempt.worker_log(w.rank) for w in plan.workers}
    return known | _unplanned(attempt, known)


def _unplanned(attempt: Attempt, known: dict[str, Path]) -> dict[str, Path]:
    """Return logs that are not in the plan, such as those of more frontends."""
    files = sorted(set(attempt.logs.glob("*.log")) - set(known.values()))
    return {file.stem.removeprefix("worker-"): file for file in files}


def _choose(known: dict[str, Path], name: str) -> Path:
    also = {file.stem: file for file in known.values()}
    if name not in known | also:
        raise unknown_name("log", name, known)
    return (known | also)[name]


def _log_table(known: dict[str, Path]) -> Table:
    """Return the table of logs. Only the last lines are cut, and only on a terminal."""
    table = Table(expand=sys.stdout.isatty())
    table.add_column("log", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("last line", no_wrap=True, overflow="ellipsis", ratio=1)
    for name, file in known.items():
        last = LogTail(file)
        lines = [*last.last(1), *last.rest()]
        size = f"{file.stat().st_size:,}" if file.exists() else "-"
        table.add_row(name, size, Text(terminal_line(lines[-1]) if lines else ""))
    return table


def _show(
    attempt: Attempt, chosen: dict[str, Path], lines: int, *, follow: bool, all_: bool
) -> None:
    """Print the ends of logs; with `follow`, also new lines and, of `all_` logs, new logs."""
    tails = {name: LogTail(file) for name, file in chosen.items()}
    if not all_:
        print(f"==> {_name(str(next(iter(chosen.values()))))} <==", flush=True)
    for name, tail in tails.items():
        _print_lines(name if all_ else "", tail.last(lines))
    job = launch.find_job(attempt)
    watcher = RunWatcher(attempt, job) if job and follow else None
    while watcher and watcher.outcome() is None:
        time.sleep(POLL_S)
        if all_:
            known = {name: tail.file for name, tail in tails.items()}
            tails |= {name: LogTail(file) for name, file in _unplanned(attempt, known).items()}
        for name, tail in tails.items():
            _print_lines(name if all_ else "", tail.read())
    for name, tail in tails.items():
        _print_lines(name if all_ else "", [*tail.read(), *tail.rest()])


def _print_lines(name: str, lines: Iterable[str]) -> None:
    for line in lines:
        line = terminal_line(line) if sys.stdout.isatty() else line
        print(f"{_name(name):>10} | {line}" if name else line, flush=True)


def _name(name: str) -> str:
    """Return the name of a file of any user as one line."""
    return escape_controls(name).replace("\n", r"\n")
