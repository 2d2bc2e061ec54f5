"""Outcome of a job that left none: its state, its logs and what to try."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from hpc_dynamo.config import Task
from hpc_dynamo.errors import ExitCode
from hpc_dynamo.launch.reasons import NEVER_RAN
from hpc_dynamo.launch.refusal import step_error
from hpc_dynamo.messages import Outcome
from hpc_dynamo.regular_file import open_regular_file
from hpc_dynamo.run import Attempt

TAIL_BYTES = 1 << 16  # end of each log that is searched for the cause
FULL_BYTES = 1 << 16  # a file system with less free space is full
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
CAUSE = re.compile(
    r"fatal|error|oom.?kill|CANCELLED AT|DUE TO|command not found|No such file|Permission denied",
    re.IGNORECASE,
)
RESUME = {
    Task.batch: "run the same command again to resume the batch",
    Task.profile: "run the same command again to resume the profile",
    Task.serve: "run the same command again",
}


def missing_outcome(attempt: Attempt, detail: str, *, cancelled: bool = False) -> Outcome:
    """Return the outcome of a job that ended without one. `cancelled`: its user stopped it."""
    if not attempt.config_file.exists():
        what = f"the run folder {attempt.run.path} was deleted while the job ran"
        hint = "run the same command again; results in deleted files are lost"
        return Outcome(exit_code=ExitCode.failed, message=f"{what}\n  try: {hint}")
    if detail == NEVER_RAN:
        return Outcome(exit_code=ExitCode.failed, message=f"the job was {NEVER_RAN}")
    if cancelled:
        return Outcome(exit_code=ExitCode.failed, message=f"stopped; {_resume(attempt)}")
    logs = _logs(attempt)
    rows = [f"the job ended without reporting a result: {detail}"]
    rows += [f"  {file}: {line}" for file, lines in logs.items() if (line := _cause(lines))]
    rows += [f"  logs: {attempt.logs} and {attempt.submitit}"]
    rows += [f"  try: {_remedy(attempt, detail, logs)}"]
    return Outcome(exit_code=ExitCode.failed, message="\n".join(rows))


def _remedy(attempt: Attempt, detail: str, logs: dict[Path, list[str]]) -> str:
    """Return what to try. Resuming is advised only if a job ran and the cause may be gone."""
    resume, lines = _resume(attempt), [line for lines in logs.values() for line in lines]
    if _full(attempt.path) or any(map(NO_SPACE.search, lines)):
        return f"the disk of {attempt.run.path} is full: free some space, then {resume}"
    if "OUT_OF_MEMORY" in detail or any("oom" in line.lower() for line in lines):
        return f"more cluster.memory_gb_per_node, then {resume}"
    if not any(attempt.nodes()):
        if refusal := step_error("\n".join(lines)):
            return f"{refusal.hint} (hpc-dynamo never started)"
        return "the cause is in the lines above, or in these logs: hpc-dynamo never started"
    return resume


def _resume(attempt: Attempt) -> str:
    return RESUME[attempt.config().task]


def _full(path: Path) -> bool:
    there = os.statvfs(path)
    return there.f_bavail * there.f_frsize < FULL_BYTES


def _logs(attempt: Attempt) -> dict[Path, list[str]]:
    """Return the last lines of the logs of Slurm, submitit and the agents."""
    files = sorted([*attempt.submitit.glob("*.err"), *attempt.logs.glob("agent-*.log")])
    return {file: _tail(file) for file in files}


def _tail(file: Path) -> list[str]:
    with open_regular_file(file) as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL_BYTES))
        text = stream.read(TAIL_BYTES).decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _cause(lines: Iterable[str]) -> str:
    """Return the most informative line: a full disk, the last error, or the last line."""
    known = list(lines)
    if refused := next(filter(step_error, known), ""):
        return refused
    for pattern in (NO_SPACE, CAUSE):
        if found := [line for line in known if pattern.search(line)]:
            return found[-1]
    return known[-1] if known else ""
