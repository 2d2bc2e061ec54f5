"""Errors of the file system are one line with path and remedy, at the terminal and in the job."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc_dynamo.errors import FileError, FileRefused, file_error, file_error_in
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import write_atomic
from hpc_dynamo.tasks.node import run_to_outcome
from tests.support.runs import HANG_S, SIMULATOR, hpc_dynamo, latest, until, write_prompts
from tests.support.terminal import Done, new_run, on_a_terminal, rest_of

NOBODY = 65534
BATCH = ("batch", *SIMULATOR, "input=p.jsonl")


def one_line(done: Done, *parts: str, code: int = 3) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "; try: " in done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.EACCES, FileRefused, "permission denied"),
        (errno.EROFS, FileRefused, "the file system is read-only"),
        (errno.ENOENT, FileRefused, "no such file or folder"),
        (errno.ENAMETOOLONG, FileRefused, "the name is too long"),
        (errno.ENOSPC, FileError, "no space left on the device"),
        (errno.EDQUOT, FileError, "your disk quota is used up"),
        (errno.EFBIG, FileError, "the file is larger than its limit"),
        (errno.EIO, FileError, "input/output error"),
    ],
)
def test_file_error_names_path_and_remedy(number: int, kind: type, said: str) -> None:
    error = file_error(OSError(number, os.strerror(number), "/tmp/no such/file"))
    assert type(error) is kind
    assert str(error).startswith(f"/tmp/no such/file: {said}")
    assert "\n" not in str(error)
    assert error is not None
    assert error.hint


def test_other_os_errors_are_not_file_errors() -> None:
    for other in (ConnectionRefusedError(errno.ECONNREFUSED, "x"), TimeoutError(), OSError("x")):
        assert file_error_in(other) is None
    assert file_error_in(ValueError("x")) is None


def test_file_error_is_found_in_groups_and_causes() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/d/f")
    cause = RuntimeError("y")
    cause.__cause__ = full
    for error in (ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [full])]), cause):
        found = file_error_in(error)
        assert found is not None
        assert found.message == "/d/f: no space left on the device"
        assert found.hint.startswith("`df -h /`"), "the nearest folder that is there"


def test_failed_write_names_its_file_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from hpc_dynamo.run import write_atomic;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "write_atomic(Path(sys.argv[1]), b'x' * 5000)"
    )
    file = tmp_path / "a file"
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert f"File too large: '{file}'" in done.stderr
    assert list(tmp_path.iterdir()) == []
    write_atomic(file, b"y")
    assert file.read_bytes() == b"y"


@pytest.fixture
def as_stranger(tmp_path: Path) -> Callable[..., Done]:
    """The command line for a user without rights to files of other users: root loses its own."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable]
    if os.geteuid() or subprocess.run([*drop, "-c", ""], capture_output=True).returncode:
        pytest.skip("needs root, to make files of another user")

    def call(*words: str) -> Done:
        argv = [*drop, "-m", "hpc_dynamo", *words]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S)

    return call


def give_away(path: Path, mode: int) -> None:
    os.chown(path, NOBODY, NOBODY)
    path.chmod(mode)


def test_folder_of_another_user(as_stranger: Callable[..., Done], tmp_path: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", 3)
    one_line(as_stranger(*BATCH, "runs_dir=/proc/none"), "/proc/none")
    give_away(tmp_path, 0o755)
    said = f"{tmp_path}: it belongs to another user and its owner could replace runs in it"
    one_line(as_stranger(*BATCH), f"{said} (owner nobody, mode 0755)", "try: runs_dir=FOLDER")
    one_line(as_stranger("serve", *SIMULATOR), said)
    one_line(as_stranger(*BATCH, "runs_dir=/proc/none"), f"the current folder is not safe: {said}")


def test_run_of_another_user(as_stranger: Callable[..., Done], tmp_path: Path) -> None:
    attempt = new_run(tmp_path / "runs" / "p")
    give_away(attempt.run.path, 0o700)
    ask = f"try: ask nobody for read access; `ls -ld {attempt.run.path}`"
    for verb in ("status", "stop", "logs", "chat", "endpoint", "report"):
        said = as_stranger(verb, "name=p")
        one_line(said, "runs/p", "permission denied", "belongs to nobody", ask)


def test_unreadable_input(as_stranger: Callable[..., Done], tmp_path: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", 3)
    file = tmp_path / "p.jsonl"
    give_away(file, 0o600)
    said = f"{file}: permission denied"
    one_line(as_stranger(*BATCH), said, f"ask nobody for read access; `ls -ld {file}`")
    os.chown(file, os.geteuid(), -1)
    file.chmod(0)
    one_line(as_stranger(*BATCH), said, f"try: `chmod u+rX {file}`")


def test_key_file_of_another_user(as_stranger: Callable[..., Done], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    give_away(key, 0o600)
    said = as_stranger("chat", "--url", "http://127.0.0.1:1/v1", "--key-file", str(key), "Hi")
    one_line(said, f"{key}: permission denied", "ask nobody for read access")
    said = as_stranger("serve", *SIMULATOR, f"serve.api_key_file={key}")
    one_line(said, f"{key}: permission denied", "ask nobody for read access")


def test_refused_write_does_not_mention_read_access(
    as_stranger: Callable[..., Done], tmp_path: Path
) -> None:
    """All users may read the folder, so the remedy must not ask for that."""
    write_prompts(tmp_path / "p.jsonl", 3)
    (tmp_path / "theirs").mkdir()
    give_away(tmp_path / "theirs", 0o755)
    one_line(as_stranger(*BATCH, "runs_dir=theirs"), "try: runs_dir=FOLDER, a folder of your own")


def test_long_names_and_missing_folders(tmp_path: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", 3)
    done = hpc_dynamo(*BATCH, f"name={'x' * 300}", cwd=tmp_path)
    assert done.returncode == 3
    assert "is too long: 300 bytes" in done.stderr
    (tmp_path / "file").touch()
    one_line(hpc_dynamo(*BATCH, "runs_dir=file", cwd=tmp_path), str(tmp_path / "file"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def filled(folder: Path, but: int = 0) -> Path:
    """Fill the file system except for this number of bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        free = shutil.disk_usage(folder).free - but
        file.write(b"x" * max(0, free))
    return ballast


def test_full_disk_before_the_job(small: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", 3)
    filled(small)
    done = hpc_dynamo(*BATCH, f"runs_dir={small}/runs", cwd=tmp_path)
    one_line(done, f"{small}/runs/p", "no space left on the device", "`df -h ", code=1)


def test_full_disk_while_results_are_merged(small: Path, tmp_path: Path) -> None:
    """Files are written through a handle, whose errors have no file name."""
    write_prompts(tmp_path / "p.jsonl", 100, max_tokens=40)
    words = (*BATCH, f"runs_dir={small}/runs")
    assert hpc_dynamo(*words, cwd=tmp_path).returncode == 0
    output = small / "runs/p/output.jsonl"
    output.unlink()
    ballast = filled(small, but=20_000)
    before = sorted(p.name for p in output.parent.iterdir())
    done = hpc_dynamo(*words, cwd=tmp_path)
    one_line(done, f"{output}: no space left", f"`df -h {output.parent}`", code=1)
    assert sorted(p.name for p in output.parent.iterdir()) == before, "nothing half written"
    ballast.unlink()
    assert hpc_dynamo(*words, cwd=tmp_path).returncode == 0
    assert output.exists()


def test_full_disk_of_standard_output(small: Path, tmp_path: Path) -> None:
    filled(small)
    argv = [sys.executable, "-m", "hpc_dynamo", "plan", *SIMULATOR]
    with (small / "plan.txt").open("w") as file:
        done = subprocess.run(argv, cwd=tmp_path, stdout=file, stderr=-1, text=True)
    assert "no space left on the device" in done.stderr
    assert f"`df -h {small}/plan.txt`" in done.stderr


def test_full_disk_without_a_file_name_names_the_run(tmp_path: Path) -> None:
    """The job names its own log, which is on the disk of the run."""

    async def fails() -> Outcome:
        raise OSError(errno.ENOSPC, "No space left on device")

    outcome = run_to_outcome(fails(), tmp_path / "agent-0.log")
    assert f"`df -h {tmp_path}`" in outcome.message


def test_disk_that_fills_up_during_a_batch(small: Path, tmp_path: Path) -> None:
    """The outcome reports it, and the same command resumes once there is space."""
    ids = write_prompts(tmp_path / "p.jsonl", 800, max_tokens=40)
    words = (*BATCH, f"runs_dir={small}/runs")
    ballast = filled(small, but=400_000)
    done = hpc_dynamo(*words, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no space left on the device" in done.stderr
    assert f"df -h {small}/" in done.stderr
    assert "run the same command again to resume" in done.stderr
    assert "without reporting" not in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    outcome = latest(small / "runs/p").outcome()
    assert outcome is not None
    assert "no space left on the device" in outcome.message
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small)], check=True)
    done = hpc_dynamo(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ids)} answered" in done.stdout


MODULE = ("-m", "hpc_dynamo")
OLD_SCRIPT = ("-c", "import sys; from hpc_dynamo.cli import main; sys.exit(main())")


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.3, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("start", [MODULE, OLD_SCRIPT], ids=["module", "older console script"])
def test_ctrl_c_in_the_first_second_prints_no_traceback(
    start: tuple[str, ...], delay_s: float, tmp_path: Path
) -> None:
    """Also while modules are imported, and by a console script of an earlier version."""
    with on_a_terminal(["plan", "engine=simulator"], tmp_path, start=start) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        until("its imports have begun", lambda: "msgspec" in maps.read_text())
        time.sleep(delay_s)
        process.sendintr()
        shown = rest_of(process)
        process.close()
    assert "Traceback" not in shown
    if process.signalstatus == signal.SIGINT:
        # Python was ending and everything was printed. A shell reports 130 for this as well.
        return
    assert process.exitstatus in (0, 130)
    if process.exitstatus == 130:
        assert re.search(r"interrupted\s*$", shown)
