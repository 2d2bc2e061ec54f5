"""End of an execution after Slurm has restarted its job."""

import asyncio
from pathlib import Path

import pytest

from hpc_dynamo.messages import Roster
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.tasks.superseded import is_superseded, stop_if_superseded


def write_roster(attempt: Attempt, restart_count: int) -> None:
    roster = Roster(nodes=(), method="tcp", seconds=0.0, restart_count=restart_count)
    write_json(attempt.roster_file, roster)


@pytest.mark.parametrize(
    ("own", "found", "superseded"), [(0, 0, False), (0, 1, True), (2, 1, False)]
)
def test_roster_of_a_later_execution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int, found: int, superseded: bool
) -> None:
    (tmp_path / "1").mkdir()
    attempt = Attempt(tmp_path / "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(own))
    assert not is_superseded(attempt), "without a roster"
    write_roster(attempt, found)
    assert is_superseded(attempt) is superseded


async def test_superseded_execution_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    write_roster(Attempt(tmp_path / "1"), 1)
    stopped = asyncio.Event()
    await stop_if_superseded(Attempt(tmp_path / "1"), stopped.set)
    assert stopped.is_set()
