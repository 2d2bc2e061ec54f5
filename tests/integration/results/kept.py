"""Run folder with attempts and results for tests."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.batch.ledger import failure_line, success_line
from hpc_dynamo.config import Config
from hpc_dynamo.errors import ConfigError, RequestFailed
from hpc_dynamo.messages import JobRecord, Outcome
from hpc_dynamo.run import Run, write_json
from hpc_dynamo.topology import Plan

Start = Callable[[Config], Run]
InJob = Callable[[str, int], None]


def with_fields(config: Config, **fields: Any) -> Config:
    """Return the configuration with `a__b=value` as the field a.b."""
    for path, value in fields.items():
        names = path.split("__")
        config = _with(config, names, value)
    return config


def _with(part: Any, names: list[str], value: Any) -> Any:
    first, *rest = names
    return replace(part, **{first: _with(getattr(part, first), rest, value) if rest else value})


def attempt(run: Run, config: Config, *lines: bytes, job: str = "1", inside: str = "") -> None:
    """Create an attempt that has ended, and its results."""
    made = run.new_attempt(config, Plan(workers=(), nodes=1, gpus_per_node=0))
    record = JobRecord(launcher="allocation", job_id=job, enclosing_job_id=inside)
    write_json(made.job_file, record)
    write_json(made.outcome_file, Outcome(exit_code=0))
    run.attempt_results(made.number).write_bytes(b"".join(lines))


def good(number: int) -> bytes:
    return success_line(f"request {number}", b'{"text": "x"}')


def bad(number: int, status: int = 400) -> bytes:
    return failure_line(f"request {number}", RequestFailed("too long", status=status, body=b"{}"))


def failed(errors: Path) -> list[str]:
    return [json.loads(row)["custom_id"] for row in errors.read_text().splitlines()]


def refused(start: Start, config: Config) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        start(config)
    return caught.value
