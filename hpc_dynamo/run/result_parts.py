"""Files with results of a run. Each execution of an attempt appends to a part of its own.

After Slurm has restarted a job, an earlier execution on a lost node may still write. Two nodes that
append to one file of a network file system damage its lines.
"""

from pathlib import Path


def part_of(folder: Path, attempt: int, restarts: int) -> Path:
    """Return the part that an execution of an attempt appends to."""
    return folder / (f"{attempt}.{restarts}.jsonl" if restarts else f"{attempt}.jsonl")


def parts_in(folder: Path) -> list[Path]:
    """Return all parts, the oldest first."""
    return sorted(folder.glob("*.jsonl"), key=_execution)


def attempt_of_part(part: Path) -> int:
    """Return the number of the attempt that wrote a part."""
    return _execution(part)[0]


def _execution(part: Path) -> tuple[int, int]:
    """Return attempt and restarts of the execution that wrote a part."""
    attempt, _, restarts = part.stem.partition(".")
    return int(attempt), int(restarts or 0)
