"""Rows of the table of faults, recorded by fault tests and rendered by `tools.fault_table`."""

import datetime
import os
import random
import subprocess
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import msgspec

KEPT = "as promised"
ROWS = Path(__file__).parents[1] / "faults/rows.jsonl"


class FaultRow(msgspec.Struct, frozen=True):
    """Outcome of one fault with one seed.

    `recovery_s` is None if nothing was timed, `sent` is 0 if no request was counted.
    """

    fault: str
    promise: str
    result: str  # KEPT, or how the test failed
    recovery_s: float | None
    sent: int
    lost: int
    seed: int
    test: str
    commit: str
    date: str


class FaultMeasurement:
    """Clock and request count of one fault. The clock starts when it is made, or at `injected`."""

    def __init__(self, fault: str, promise: str) -> None:
        self.fault, self.promise = fault, promise
        self.recovery_s: float | None = None
        self.sent = self.lost = 0
        self._began = time.monotonic()

    def injected(self) -> None:
        """Start the clock: the fault happens now."""
        self._began = time.monotonic()

    def recovered(self) -> None:
        """Stop the clock: the run works as before."""
        self.recovery_s = time.monotonic() - self._began

    def requests(self, sent: int, lost: int = 0) -> None:
        """Add requests that were sent while the fault lasted, and those that a client lost."""
        self.sent, self.lost = self.sent + sent, self.lost + lost


class FaultRecorder:
    """Records the rows of one test: `row = fault("SIGKILL of the only frontend", "restarted")`.

    A failure of the test is the result of the row that was begun last. `chance` draws from the
    seed: the moment of the fault, the process, the kind of traffic.
    """

    def __init__(self, seed: int, test: str) -> None:
        self.seed, self.chance = seed, random.Random(seed)
        self._test, self._rows = test, list[FaultMeasurement]()

    def __call__(self, fault: str, promise: str) -> FaultMeasurement:
        """Begin a row and return its measurement."""
        self._rows.append(FaultMeasurement(fault, promise))
        return self._rows[-1]

    def rows(self, failure: str) -> Iterator[FaultRow]:
        """Yield the rows at the end of the test. `failure` is empty if it passed."""
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        for row in self._rows:
            yield FaultRow(
                fault=row.fault,
                promise=row.promise,
                result=(row is self._rows[-1] and failure) or KEPT,
                recovery_s=row.recovery_s,
                sent=row.sent,
                lost=row.lost,
                seed=self.seed,
                test=self._test,
                commit=_commit(),
                date=today,
            )


@cache
def _commit() -> str:
    argv = ("git", "rev-parse", "--short", "HEAD")
    done = subprocess.run(argv, cwd=ROWS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def append_rows(file: Path, rows: Iterable[FaultRow]) -> None:
    """Append rows by one write: workers of pytest-xdist share the file."""
    data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def read_rows(file: Path = ROWS) -> list[FaultRow]:
    """Return the newest row of each fault and seed, by test file, then as first recorded."""
    newest = dict[tuple[str, int], FaultRow]()
    for line in file.read_bytes().splitlines() if file.exists() else ():
        row = msgspec.json.decode(line, type=FaultRow)
        newest[row.fault, row.seed] = row
    return sorted(newest.values(), key=lambda row: row.test.partition("::")[0])
