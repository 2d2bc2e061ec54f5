"""Folders and shared memory of processes that were killed are removed, and nothing else is."""

import multiprocessing.shared_memory
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_dynamo.errors import FileRefused
from hpc_dynamo.process import node_folder
from hpc_dynamo.process.node_folder import (
    MARK,
    PREFIX,
    private_node_folder,
    remove_leftover_folders,
)
from hpc_dynamo.process.shared_memory import remove_unused_segments

OTHER = 65534
HOLD = """
import sys
from hpc_dynamo.process.node_folder import private_node_folder
with private_node_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_folder_is_private_short_and_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for base in (tmp_path, tmp_path / ("long" * 30)):
        base.mkdir(exist_ok=True)
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setenv("TMPDIR", str(base))
        with private_node_folder() as folder:
            assert Path(folder).stat().st_mode & 0o777 == 0o700
            assert len(folder) <= 107 - len("/") - 36, "room for a socket named by a UUID"
            (Path(folder) / "0").touch()
        assert not Path(folder).exists()


def test_folder_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout
        folder = Path(holder.stdout.readline().strip())
        (folder / "socket").touch()
        remove_leftover_folders(folder.parent)
        assert (folder / "socket").exists(), "its process lives"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert folder.exists()
        remove_leftover_folders(folder.parent)
        assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_traps_of_other_users_are_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    (mine / "thesis.tex").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(mine)
    (tmp_path / f"{PREFIX}file").touch()
    theirs = tmp_path / f"{PREFIX}theirs"
    theirs.mkdir(mode=0o700)
    (theirs / "link").symlink_to(mine)
    os.chown(theirs, OTHER, OTHER)
    (tmp_path / f"{PREFIX}open").mkdir()
    (tmp_path / f"{PREFIX}open").chmod(0o755)
    inside = tmp_path / f"{PREFIX}dead"
    inside.mkdir(mode=0o700)
    (inside / "link").symlink_to(mine)
    (tmp_path / f"{PREFIX}moved").mkdir(mode=0o700)
    for marked in (theirs, tmp_path / f"{PREFIX}open", inside):
        (marked / MARK).touch()
    remove_leftover_folders(tmp_path)
    left = {path.name.removeprefix(PREFIX) for path in tmp_path.iterdir()}
    assert left == {"mine", "link", "file", "theirs", "open", "moved"}
    assert (mine / "thesis.tex").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
@pytest.mark.parametrize(
    ("owner", "permissions", "used"),
    [(0, 0o1777, True), (0, 0o777, False), (0, 0o770, False), (OTHER, 0o1777, False)],
)
def test_folder_is_not_made_for_others_to_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, permissions: int, used: bool
) -> None:
    base, other = tmp_path / "tmp", tmp_path / "other"
    for folder in (base, other):
        folder.mkdir()
    os.chown(base, owner, owner)
    base.chmod(permissions)
    monkeypatch.setattr("tempfile.tempdir", str(base))
    monkeypatch.setattr(node_folder, "MAX_BASE_BYTES", 1000)
    monkeypatch.setattr(node_folder, "SHORT_BASE", str(other))
    with private_node_folder() as made:
        assert Path(made).parent == (base if used else other)
    if not used:
        monkeypatch.setattr(node_folder, "SHORT_BASE", str(base))
        with pytest.raises(FileRefused, match=f"{base}: "), private_node_folder():
            pass


def test_only_unused_segments_are_removed() -> None:
    """The second one is what a process leaves that was killed: not mapped by any process."""
    used = multiprocessing.shared_memory.SharedMemory(create=True, size=100)
    code = (
        "import os; from multiprocessing.shared_memory import SharedMemory;"
        "print(SharedMemory(create=True, size=100).name, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    # Python's resource tracker would remove it; an engine that is killed with its group has none.
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as killed:
        assert killed.stdout
        name = killed.stdout.readline().strip().lstrip("/")
    (Path("/dev/shm") / name).touch()
    user_file = Path("/dev/shm/hpc-dynamo-test-data")
    user_file.touch()
    try:
        assert name in remove_unused_segments()
        assert not (Path("/dev/shm") / name).exists()
        assert user_file.exists()
        assert (Path("/dev/shm") / used.name.lstrip("/")).exists()
    finally:
        user_file.unlink()
        used.close()
        used.unlink()


def test_segments_of_engines_are_known_by_name(tmp_path: Path) -> None:
    left = [
        "sgl_shm_mm_17_ab12cd34",
        "sglang_loads_0a746c8a4364_d4fce984.shm",
        "vllm_offload_1.mmap",
    ]
    for name in (*left, "data", "my_vllm_notes"):
        (tmp_path / name).touch()
    assert remove_unused_segments(tmp_path) == left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "my_vllm_notes"]
