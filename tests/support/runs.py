"""Use of hpc-dynamo from outside, as by its users: child processes and files."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hpc_dynamo.run import Attempt, Run

SIMULATOR = ("engine=simulator", "cluster.launcher=local")
BUSY_FACTOR, BUSY_S = 4.0, 120.0
# Limit of a child process or a request. Only a hang reaches it, also on a busy machine.
HANG_S = 600.0


def hpc_dynamo(
    *words: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = HANG_S,
    open_files: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. `open_files` is its soft and hard limit."""
    argv = [sys.executable, "-m", "hpc_dynamo", *words]
    if open_files:
        argv = ["prlimit", f"--nofile={open_files}:{open_files}", *argv]
    environment = {**os.environ, "COLUMNS": "200", **(env or {})}
    return subprocess.run(
        argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s
    )


def write_lines(file: Path, bodies: Iterable[Mapping[str, object]]) -> None:
    """Write an input file with one request body per line."""
    file.write_text("".join(json.dumps(body) + "\n" for body in bodies))


def write_prompts(file: Path, count: int, max_tokens: int = 8) -> list[str]:
    """Write an input file in OpenAI's batch format. Return the ids in order."""
    ids = [f"request {i}" for i in range(count)]
    rows = (
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": "/v1/completions",
            "body": {
                "model": "any",
                "prompt": f"{custom_id}: " + f"tell me about the number {i}. " * 12,
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,
            },
        }
        for i, custom_id in enumerate(ids)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ids


def answers(output: Path, *, text: bool = True) -> dict[str, str]:
    """Return the texts by id. Fails for duplicate ids."""
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    found = {row["custom_id"]: _text(row) if text else "" for row in rows}
    assert len(found) == len(rows), "an id has more than one result"
    return found


def _text(row: dict[str, Any]) -> str:
    assert row["error"] is None, row
    choice = row["response"]["body"]["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def each_once(run: Path, ids: list[str]) -> None:
    """Assert that each request has one result, in order, and none was repeated."""
    assert results_on_disk(run) == len(ids), "a finished request was run again"
    assert list(answers(run / "output.jsonl")) == ids


def latest(run: Path) -> Attempt:
    return Run(run).attempts()[-1]


def until(
    what: str, condition: Callable[[], Any], timeout_s: float = 60, poll_s: float = 0.02
) -> Any:
    """Poll until a condition holds. Files have no events across nodes.

    `timeout_s` is for a quiet machine; a busy one gets four times as long, and at least two
    minutes.
    """
    deadline = time.monotonic() + max(BUSY_FACTOR * timeout_s, BUSY_S)
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(poll_s)
    return value


def results_on_disk(run: Path) -> int:
    """Return the number of complete lines in all parts of a run."""
    return sum(part.read_bytes().count(b"\n") for part in (run / "parts").glob("*.jsonl"))


def until_results(run: Path, count: int, timeout_s: float = 60) -> None:
    """Wait until a run, which may not have started, has `count` results."""
    until(f"{count} results", lambda: results_on_disk(run) >= count, timeout_s)
