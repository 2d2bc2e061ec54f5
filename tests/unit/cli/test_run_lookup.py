"""Commands find a run of this user, and leave other folders as they are."""

import os
from argparse import Namespace
from pathlib import Path

import pytest

from hpc_dynamo.cli.render.endpoint import ssh_tunnel
from hpc_dynamo.cli.run_folder import serve_run
from hpc_dynamo.cli.run_lookup import find_run
from hpc_dynamo.config import Config
from hpc_dynamo.errors import ConfigError, FileRefused
from hpc_dynamo.messages import Endpoint
from hpc_dynamo.run import Run

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


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
@pytest.mark.parametrize("by_name", [True, False])
def test_named_run_of_another_user_is_refused(tmp_path: Path, by_name: bool) -> None:
    """Its files could be pipes without a writer or endless, or name a URL for the user's key."""
    theirs = run_folder(tmp_path, "theirs", 0)
    theirs.chmod(0o755)
    words = ["theirs", f"runs_dir={tmp_path}"] if by_name else [str(theirs)]
    args = Namespace(overrides=words, config_dir=None)
    assert find_run(args).path == theirs
    assert theirs.stat().st_mode & 0o777 == 0o755
    os.chown(theirs, OTHER, OTHER)
    with pytest.raises(FileRefused, match="belongs to another user"):
        find_run(args)
    os.chown(theirs, 0, 0)
    os.chown(theirs / "attempts", OTHER, OTHER)
    with pytest.raises(FileRefused, match="belongs to another user"):
        find_run(args)


def test_folders_with_other_names_are_no_attempts(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "run", 0)
    for name in ("²", "٣", "1a", "-1", "1\n"):
        (run / "attempts" / name).mkdir()
    assert [attempt.number for attempt in Run(run).attempts()] == [1]


def test_refused_folder_without_a_run_keeps_its_mode(tmp_path: Path) -> None:
    shared = tmp_path / "web"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "index.html").touch()
    before = os.umask(0o022)
    try:
        with pytest.raises(ConfigError, match="is not the folder of a run"):
            serve_run(Config(name="web", runs_dir=str(tmp_path)), print)
    finally:
        os.umask(before)
    assert shared.stat().st_mode & 0o777 == 0o755


def test_tunnel_of_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may know neither a passwd entry nor a variable."""

    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 42101")

    url, host = "http://127.0.0.1:80/v1", "node-of-this-test"
    endpoint = Endpoint(url=url, host=host, address="127.0.0.1", port=80, model="m", key_file="k")
    monkeypatch.setattr("getpass.getuser", unknown)
    monkeypatch.setattr("socket.gethostname", lambda: "login")
    monkeypatch.delenv("SLURM_SUBMIT_HOST", raising=False)
    assert "@" not in ssh_tunnel(endpoint)
    assert ssh_tunnel(endpoint).endswith(" node-of-this-test")
