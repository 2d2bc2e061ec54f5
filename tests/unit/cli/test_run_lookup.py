"""Commands without the name of a run use the newest run of this user."""

import os
from argparse import Namespace
from pathlib import Path

import pytest

from hpc_dynamo.cli.run_lookup import find_run
from hpc_dynamo.errors import ConfigError

OTHER = 65534


def run_folder(runs: Path, name: str, age_s: float) -> Path:
    attempts = runs / name / "attempts"
    (attempts / "1").mkdir(parents=True)
    os.utime(attempts, (2e9 - age_s, 2e9 - age_s))
    return attempts.parent


def newest(runs: Path) -> str:
    return find_run(Namespace(overrides=[f"runs_dir={runs}"], config_dir=None)).path.name


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_runs_of_other_users_are_not_read(tmp_path: Path) -> None:
    run_folder(tmp_path, "old", 9)
    run_folder(tmp_path, "mine", 5)
    theirs = run_folder(tmp_path, "theirs", 0)
    os.chown(theirs, OTHER, OTHER)
    (tmp_path / "link").symlink_to("theirs")
    os.chown(run_folder(tmp_path, "part", 0) / "attempts", OTHER, OTHER)
    assert newest(tmp_path) == "mine"
    os.chown(tmp_path / "mine", OTHER, OTHER)
    os.chown(tmp_path / "old", OTHER, OTHER)
    with pytest.raises(ConfigError, match="holds no run"):
        newest(tmp_path)
