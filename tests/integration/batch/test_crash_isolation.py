"""Requests that were running on a worker when it died: only the one that crashes it fails."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_dynamo.batch.crash_isolation import max_solo_attempts, retry_groups, retry_isolated
from hpc_dynamo.batch.input_file import RequestEntry
from hpc_dynamo.config import Config
from tests.support.runs import (
    SIMULATOR,
    answers,
    hpc_dynamo,
    latest,
    results_on_disk,
    write_prompts,
)

POISON = "the word that ends engines"


def entries(count: int) -> list[RequestEntry]:
    return [RequestEntry(f"{i}", i, 1) for i in range(count)]


class Worker:
    """Worker that crashes on some requests, and on its first ones if `dies_anyway`."""

    def __init__(self, poison: Sequence[int], dies_anyway: int = 0) -> None:
        self.poison, self.dies_anyway = {f"{i}" for i in poison}, dies_anyway
        self.deaths = self.runs = 0
        self.answered: list[str] = []
        self.failed: list[str] = []

    async def run(self, group: Sequence[RequestEntry], fails: bool) -> list[RequestEntry]:
        self.runs += 1
        ids = [entry.custom_id for entry in group]
        if not self.poison & set(ids) and not self.dies_anyway:
            self.answered += ids
            return []
        self.dies_anyway = max(0, self.dies_anyway - 1)
        self.deaths += 1
        self.failed += ids if fails else []
        return [] if fails else list(group)


@pytest.mark.parametrize("count", [1, 2, 64, 65, 256, 1000])
@pytest.mark.parametrize("poison", [[], [0], [-1]])
async def test_only_crashing_request_fails(count: int, poison: list[int]) -> None:
    poison = [i % count for i in poison]
    worker = Worker(poison)
    await retry_isolated(entries(count), worker.run, attempts=1)
    assert worker.failed == [f"{i}" for i in poison]
    assert sorted(map(int, worker.answered)) == [i for i in range(count) if i not in poison]
    assert worker.deaths <= len(poison) * (1 if count <= 64 else 2)
    assert worker.runs <= max(64, 2.2 * count**0.5 + 2)


async def test_several_crashing_requests_fail() -> None:
    worker = Worker([3, 4, 99])
    await retry_isolated(entries(100), worker.run, attempts=2)
    assert worker.failed == ["3", "4", "99"]
    assert len(worker.answered) == 97


@pytest.mark.parametrize("count", [3, 100])
async def test_unrelated_worker_crash_fails_no_request(count: int) -> None:
    worker = Worker([], dies_anyway=1)
    await retry_isolated(entries(count), worker.run, attempts=2)
    assert worker.failed == []
    assert len(worker.answered) == count


@pytest.mark.parametrize(
    ("retries", "restarts", "tries"), [(3, 2, 1), (3, 5, 2), (3, 9, 4), (0, 9, 1), (3, 0, 1)]
)
def test_max_solo_attempts_leaves_restarts_for_others(
    retries: int, restarts: int, tries: int
) -> None:
    config = Config()
    batch, engine = (
        replace(config.batch, max_retries=retries),
        replace(config.engine, max_restarts=restarts),
    )
    assert max_solo_attempts(replace(config, batch=batch, engine=engine)) == tries


def test_retry_groups_contain_every_request_once() -> None:
    for count in (0, 1, 64, 65, 100, 257):
        parts = retry_groups(entries(count))
        assert [entry for part in parts for entry in part] == entries(count)


@pytest.mark.parametrize("topology", ["aggregated", "disaggregated"])
def test_requests_next_to_crashing_request_are_answered(tmp_path: Path, topology: str) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 6)
    rows = (tmp_path / "prompts.jsonl").read_text().splitlines()
    rows.insert(2, json.dumps({"custom_id": "poison", "prompt": POISON, "max_tokens": 8}))
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    words = (f"engine.args.fail-on-text={json.dumps(POISON)}", f"topology={topology}")
    argv = ("batch", *SIMULATOR, "input=prompts.jsonl", *words, "engine.args.time-scale=20")
    done = hpc_dynamo(*argv, cwd=tmp_path)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "1 request of 7 failed" in done.stderr
    run = tmp_path / "runs/prompts"
    assert list(answers(run / "output.jsonl")) == ids
    assert results_on_disk(run) == 7
    (row,) = map(json.loads, (run / "errors.jsonl").read_text().splitlines())
    assert (row["custom_id"], row["error"]["final"]) == ("poison", False)
    assert "a worker died during this request" in row["error"]["message"]
    status = latest(run).status()
    assert status
    assert status.phase == "done"


def test_exit_code_depends_on_answered_requests(tmp_path: Path) -> None:
    """The exit code is 0 for all, 4 for some, 3 for none, also when nothing is left to do."""
    refused = {"custom_id": "refused", "prompt": "x", "temperature": -1}
    (tmp_path / "none.jsonl").write_text(json.dumps(refused))
    write_prompts(tmp_path / "some.jsonl", 1)
    with (tmp_path / "some.jsonl").open("a") as file:
        file.write(json.dumps(refused))
    for name, code in {"none": 3, "some": 4}.items():
        for _ in range(2):
            done = hpc_dynamo("batch", *SIMULATOR, f"input={name}.jsonl", cwd=tmp_path)
            assert done.returncode == code, done.stdout + done.stderr
    assert "nothing to do" in done.stdout
    assert "1 request of 2 failed" in done.stdout
