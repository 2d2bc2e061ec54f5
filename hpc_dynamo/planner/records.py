"""planner.jsonl of an attempt: every decision, and what became of every change of role."""

import os
from pathlib import Path

import msgspec

from hpc_dynamo.config import Role
from hpc_dynamo.planner.signals import PlannerDecision


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """One change of role, which ended at `at`. `why` it failed; empty: it is done."""

    at: float  # since the epoch
    rank: int
    old: Role
    new: Role
    why: str = ""
    drain_s: float = 0.0
    turn_s: float = 0.0  # from the drain's end to ready in the new role


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the file: one of these. `left_out`: why a move was not made, or not wholly."""

    decision: PlannerDecision | None = None
    flip: Flip | None = None
    skipped: str = ""


def append_record(file: Path, record: msgspec.Struct) -> None:
    """A whole line, on disk when this returns. Raises OSError."""
    with file.open("ab") as out:
        out.write(msgspec.json.encode(record) + b"\n")
        out.flush()
        os.fsync(out.fileno())


def read_records(file: Path) -> list[Record]:
    """Those in the file, if there is one; a last line that is still being written is left out."""
    if not file.exists():
        return []
    *lines, _ = file.read_bytes().split(b"\n")
    decoder = msgspec.json.Decoder(Record)
    return [decoder.decode(line) for line in lines]
