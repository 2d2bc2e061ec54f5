"""Run folders that another user could have written to are refused. Needs root, for other owners."""

import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from hpc_dynamo.errors import FileRefused
from hpc_dynamo.launch.task_folder import refuse_unsafe_folder
from hpc_dynamo.run import Run, privacy
from hpc_dynamo.run.privacy import (
    create_private_folder,
    open_private_folder,
    require_private_folder,
    require_safe_cwd,
)

OTHER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_folders_are_private_with_any_umask(tmp_path: Path) -> None:
    run = tmp_path / "a" / "runs" / "r"
    before = os.umask(0)
    try:
        create_private_folder(run)
    finally:
        os.umask(before)
    assert [mode(folder) for folder in (run, run.parent, run.parent.parent)] == [0o700] * 3


@pytest.mark.parametrize("readable", [0o755, 0o750, 0o711])
def test_own_readable_folder_gets_private(tmp_path: Path, readable: int) -> None:
    run = tmp_path / "runs" / "r"
    create_private_folder(run)
    run.chmod(readable)
    require_private_folder(run)
    assert mode(run) == 0o700


def test_missing_folder_is_accepted(tmp_path: Path) -> None:
    require_private_folder(tmp_path / "runs" / "r")


def writable(run: Path) -> Path:
    run.chmod(0o770)
    return run


def link(run: Path) -> Path:
    run.rename(run.with_name("real"))
    run.symlink_to("real")
    return run


def file(run: Path) -> Path:
    run.rmdir()
    run.touch()
    return run


def given_away(run: Path) -> Path:
    os.chown(run, OTHER, OTHER)
    return run


def planted_entry(run: Path) -> Path:
    planted = run / "secrets.json"
    planted.touch()
    os.chown(planted, OTHER, OTHER)
    return planted


def planted_link(run: Path) -> Path:
    planted = run / "attempts"
    planted.symlink_to("/")
    os.lchown(planted, OTHER, OTHER)
    return planted


def parent_of_another_user(run: Path) -> Path:
    os.chown(run.parent, OTHER, OTHER)
    return run.parent


def parent_writable_by_group(run: Path) -> Path:
    run.parent.chmod(0o770)
    return run.parent


def grandparent_writable_by_all(run: Path) -> Path:
    run.parent.parent.chmod(0o777)
    return run.parent.parent


def parent_is_link_of_another_user(run: Path) -> Path:
    run.parent.rename(run.parent.with_name("real"))
    run.parent.symlink_to("real")
    os.lchown(run.parent, OTHER, OTHER)
    return run.parent


def grandparent_of_another_user(run: Path) -> Path:
    os.chown(run.parent.parent, OTHER, OTHER)
    return run.parent.parent


def sticky_grandparent_of_another_user(run: Path) -> Path:
    run.parent.parent.chmod(0o1777)
    return grandparent_of_another_user(run)


def own_link_leads_through_a_link_of_another_user(run: Path) -> Path:
    run.parent.rename(run.parent.with_name("real"))
    hop = run.parent.with_name("hop")
    hop.symlink_to("real")
    os.lchown(hop, OTHER, OTHER)
    run.parent.symlink_to(hop)
    return hop


def own_link_leads_out_of_a_folder_of_another_user(run: Path) -> Path:
    run.parent.rename(run.parent.with_name("real"))
    theirs = run.parent.with_name("theirs")
    theirs.mkdir()
    os.chown(theirs, OTHER, OTHER)
    (theirs / "hop").symlink_to("../real")
    run.parent.symlink_to("theirs/hop")
    return theirs


@needs_root
@pytest.mark.parametrize(
    ("prepare", "hint"),
    [
        (writable, "`ls -la {0}`, then `chmod 700 {0}`; or another name=NAME"),
        (link, "another name=NAME"),
        (file, "another name=NAME"),
        (given_away, "another name=NAME"),
        (planted_entry, "`rm -r {0}`, or another name=NAME"),
        (planted_link, "`rm -r {0}`, or another name=NAME"),
        (parent_of_another_user, "runs_dir=FOLDER, a folder"),
        (parent_writable_by_group, "`chmod go-w {0}`, or runs_dir="),
        (grandparent_writable_by_all, "`chmod go-w {0}`, or runs_dir="),
        (parent_is_link_of_another_user, "runs_dir="),
        (grandparent_of_another_user, "runs_dir="),
        (sticky_grandparent_of_another_user, "runs_dir="),
        (own_link_leads_through_a_link_of_another_user, "runs_dir="),
        (own_link_leads_out_of_a_folder_of_another_user, "runs_dir="),
    ],
)
def test_unsafe_folder_is_refused(
    tmp_path: Path, prepare: Callable[[Path], Path], hint: str
) -> None:
    run = tmp_path / "work" / "runs" / "r"
    create_private_folder(run)
    at_fault = prepare(run)
    for check in (require_private_folder, create_private_folder):
        with pytest.raises(FileRefused) as refused:
            check(run)
        assert refused.value.message.startswith(f"{at_fault}: ")
        assert f"mode {stat.S_IMODE(at_fault.lstat().st_mode):04o}" in refused.value.message
        assert refused.value.hint.startswith(hint.format(at_fault))


@needs_root
@pytest.mark.parametrize("level", ["parent", "grandparent"])
def test_sticky_folder_of_root_is_accepted(tmp_path: Path, level: str) -> None:
    run = tmp_path / "scratch" / "r" if level == "parent" else tmp_path / "scratch" / "runs" / "r"
    create_private_folder(run)
    (tmp_path / "scratch").chmod(0o1777)
    require_private_folder(run)


@needs_root
@pytest.mark.parametrize(
    ("permissions", "group", "accepted"),
    [
        (0o2770, OTHER, True),
        (0o2750, OTHER, False),
        (0o1777, OTHER, False),
        (0o2770, 0, False),
    ],
)
def test_project_folder_of_a_group_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, permissions: int, group: int, accepted: bool
) -> None:
    """The primary group, here that of root, does not count: it may contain all users."""
    monkeypatch.setattr(os, "getgroups", lambda: [0, OTHER])
    project = tmp_path / "project"
    create_private_folder(project / "runs" / "r")
    os.chown(project, OTHER, group)
    project.chmod(permissions)
    refused = nullcontext() if accepted else pytest.raises(FileRefused, match="project: ")
    with refused:
        require_private_folder(project / "runs" / "r")


def test_owner_without_an_id_in_a_container_is_trusted_above(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Root's folders have this owner in a user namespace that contains only this user."""
    read, shown = Path.read_text, "0 1000 1"
    monkeypatch.setattr(
        Path, "read_text", lambda path: shown if path.name == "uid_map" else read(path)
    )
    privacy._unmapped_owner.cache_clear()
    try:
        assert privacy._unmapped_owner() == {OTHER}
        shown = "0 0 4294967295"
        privacy._unmapped_owner.cache_clear()
        assert not privacy._unmapped_owner()
    finally:
        privacy._unmapped_owner.cache_clear()


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        require_private_folder(tmp_path / "a" / "r")


def test_own_link_to_the_folder_of_runs_is_accepted(tmp_path: Path) -> None:
    create_private_folder(tmp_path / "scratch" / "r")
    (tmp_path / "runs").symlink_to("scratch")
    require_private_folder(tmp_path / "runs" / "r")


def test_descriptor_outlives_a_swap(tmp_path: Path) -> None:
    """A folder that is moved to the same path after the check is not read."""
    checked, planted = tmp_path / "submitit", tmp_path / "planted"
    for folder in (checked, planted):
        folder.mkdir(mode=0o700)
        (folder / "job.pkl").write_text(folder.name)
    handle = open_private_folder(checked)
    try:
        checked.rename(tmp_path / "aside")
        planted.rename(checked)
        assert Path(f"/proc/self/fd/{handle}/job.pkl").read_text() == "submitit"
    finally:
        os.close(handle)


@pytest.mark.parametrize(("permissions", "safe"), [(0o755, True), (0o770, True), (0o1777, False)])
def test_job_is_not_started_where_all_users_can_put_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, permissions: int, safe: bool
) -> None:
    """UCX loads the modules that a `ucx.conf` in the current folder names."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(permissions)
    with nullcontext() if safe else pytest.raises(FileRefused, match=f"{tmp_path}: it is the cur"):
        require_safe_cwd()


@needs_root
@pytest.mark.parametrize("level", [0, 1])
def test_job_is_not_started_in_the_folder_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    inner = tmp_path / "theirs" / "mine"
    inner.mkdir(parents=True)
    os.chown([inner, inner.parent][level], OTHER, OTHER)
    monkeypatch.chdir(inner)
    with pytest.raises(FileRefused, match="another user"):
        require_safe_cwd()


def test_task_in_an_unsafe_folder_continues_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm starts a task in /tmp if its node does not have the folder of the submission."""
    run = Run(tmp_path / "runs" / "r")
    create_private_folder(run.path)
    unsafe = tmp_path / "unsafe"
    unsafe.mkdir()
    unsafe.chmod(0o1777)
    before = os.umask(0)
    try:
        for folder, then in ((tmp_path, tmp_path), (unsafe, run.path)):
            monkeypatch.chdir(folder)
            assert refuse_unsafe_folder(run) == 0
            assert Path.cwd() == then
    finally:
        os.umask(before)
    assert f"warning: continuing in {run.path}: {unsafe}: " in capsys.readouterr().err
