"""Limits of logs: the rate of lines of one kind, and the size of a file with active writers."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_dynamo.run.logs import INTERVAL_S, BoundedFileHandler, RateLimit, limit_size

APPEND = """
import os, sys
handle = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for line in sys.stdin:
    os.write(handle, line.encode())
    print("written", flush=True)
"""


class Clock:
    """Clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[logging.Logger]:
    limit = RateLimit(3, clock)
    caplog.handler.addFilter(limit)  # all tests of a session share the handler
    logger = logging.getLogger("limited")
    logger.setLevel(logging.INFO)
    yield logger
    caplog.handler.removeFilter(limit)


def flood(logger: logging.Logger, count: int, kind: int = 401) -> None:
    for _ in range(count):
        logger.info("refused: %d 100%%", kind, extra={"kind": kind})


def test_lines_of_one_kind_are_limited(
    lines: logging.Logger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    flood(lines, 20_000)
    assert caplog.messages == [
        *["refused: 401 100%"] * 2,
        "refused: 401 100% (more lines like this one are omitted for 60 s)",
    ]
    caplog.clear()
    clock.now = INTERVAL_S
    flood(lines, 2)
    omitted = "refused: 401 100% (19997 lines like this one were omitted)"
    assert caplog.messages == [omitted, "refused: 401 100%"]


def test_other_kinds_are_not_affected(
    lines: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    flood(lines, 100)
    caplog.clear()
    flood(lines, 1, kind=500)
    lines.error("another place")
    assert caplog.messages == ["refused: 500 100%", "another place"]


def test_log_of_an_agent_is_bounded(tmp_path: Path) -> None:
    file, logger = tmp_path / "agent-0.log", logging.getLogger("agent-log")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers = [BoundedFileHandler(file, 1000, interval_s=0.0) for _ in range(2)]
    for number in range(300):
        handler = handlers[number % 2]  # the head and the agent of its node share a log
        logger.addHandler(handler)
        logger.info("line %d", number)
        logger.removeHandler(handler)
        assert file.stat().st_size <= 1000
    for handler in handlers:
        handler.close()
    kept = (tmp_path / "agent-0.log.1").read_text() + file.read_text()
    assert kept.endswith("line 298\nline 299\n")
    assert kept.count("\n") > 100


def test_short_log_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "worker-0.log"
    log.write_bytes(b"x" * 100)
    limit_size(log, 100)
    assert log.stat().st_size == 100
    limit_size(tmp_path / "missing.log", 100)
    assert [path.name for path in tmp_path.iterdir()] == ["worker-0.log"]


def test_long_log_is_cut_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "worker-0.log"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", APPEND, str(log)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdin
        assert writer.stdout
        for number in range(4):
            writer.stdin.write(f"line {number} {'x' * 100}\n")
            writer.stdin.flush()
            writer.stdout.readline()
        limit_size(log, 200)
        assert log.read_bytes() == b""
        kept = (tmp_path / "worker-0.log.1").read_text()
        assert len(kept) == 200
        assert "line 3" in kept
        writer.stdin.write("after\n")
        writer.stdin.flush()
        writer.stdout.readline()
        assert log.read_text() == "after\n", "no hole of zeros"
