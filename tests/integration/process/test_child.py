"""Children and their helpers end with the parent, however it ends."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hpc_dynamo.process import supervisor
from hpc_dynamo.process.child import JOB_VARIABLES, Child, clean_environment

SOON_S = 60.0
GRACE_S = 5.0

# Starts a helper, prints both process ids and stays. `deaf` ignores SIGTERM, as the helper does.
FAMILY = """
import os, signal, subprocess, sys, time
mode = sys.argv[1]
if "deaf" in mode:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
helper = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session="session" in mode
)
print(os.getpid(), helper.pid, flush=True)
if "ends" not in mode:
    time.sleep(600)
"""


class Watched:
    """Processes by pidfd, so that reused process ids cannot be confused."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = pids
        self._fds = [os.pidfd_open(pid) for pid in pids]

    def gone(self, timeout_s: float) -> bool:
        """Return True if all have ended within the time; zombies count as ended."""
        deadline = time.monotonic() + timeout_s
        for fd in self._fds:
            left_ms = max(0.0, deadline - time.monotonic()) * 1000
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            if not poller.poll(left_ms):
                return False
        return True

    def close(self) -> None:
        for fd in self._fds:
            with contextlib.suppress(ProcessLookupError):  # as it should be
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "it's a log ü.log"


@pytest.fixture
def watch(log: Path) -> Iterator["Watch"]:
    watch = Watch(log)
    yield watch
    watch.close()


class Watch:
    """Wait for the process ids of a family. Processes that a failing test leaves are killed."""

    def __init__(self, log: Path) -> None:
        self._log, self._all = log, list[Watched]()

    def said(self) -> Watched:
        deadline = time.monotonic() + SOON_S
        while not self._log.exists() or self._log.read_text().count("\n") < 1:
            assert time.monotonic() < deadline, "the family did not start"
            time.sleep(0.01)
        return self(map(int, self._log.read_text().split()))

    def __call__(self, pids: Iterator[int]) -> Watched:
        self._all.append(Watched(list(pids)))
        return self._all[-1]

    def close(self) -> None:
        for watched in self._all:
            watched.close()


def family(mode: str) -> list[str]:
    return [sys.executable, "-c", FAMILY, mode]


async def start(argv: Sequence[str], log: Path, grace_s: float = GRACE_S) -> Child:
    return await Child.start(argv, clean_environment({}), log, grace_s)


async def within(seconds: float, child: Child, stop: bool) -> int:
    async with asyncio.timeout(seconds):
        return await (child.stop() if stop else child.wait())


async def test_kill_ends_a_deaf_family_at_once(log: Path, watch: Watch) -> None:
    child = await start(family("deaf session"), log, grace_s=600)
    members = watch.said()
    async with asyncio.timeout(SOON_S):
        assert await child.kill() == 128 + signal.SIGKILL
    assert members.gone(SOON_S)


async def test_stopped_command_gets_sigterm(log: Path, watch: Watch) -> None:
    child = await start(family(""), log, grace_s=600)
    members = watch.said()
    os.kill(members.pids[0], signal.SIGSTOP)
    assert await within(SOON_S, child, stop=True) == 128 + signal.SIGTERM
    assert members.gone(SOON_S)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["sh", "-c", "exit 0"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["sh", "-c", "kill -SEGV $$"], 128 + signal.SIGSEGV),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["/nonexistent/python"], 127),
        (["/"], 127),
    ],
)
async def test_exit_codes(argv: list[str], code: int, log: Path) -> None:
    child = await start(argv, log)
    assert await within(SOON_S, child, stop=False) == code
    assert await within(SOON_S, child, stop=True) == code, "stop() after the end says the same"


async def test_missing_command_is_reported_in_log(log: Path) -> None:
    assert await within(SOON_S, await start(["/no/such/python"], log), stop=False) == 127
    assert log.read_text() == "/no/such/python cannot be run: No such file or directory\n"


async def test_both_outputs_are_appended_to_the_log(log: Path) -> None:
    log.write_text("an earlier life\n")
    child = await start(["sh", "-c", "echo out; echo err >&2"], log)
    await within(SOON_S, child, stop=False)
    assert log.read_text() == "an earlier life\nout\nerr\n"


async def test_arguments_and_environment_are_unchanged(log: Path) -> None:
    odd = ["a b", "it's", '"q"', "$HOME", "", "*", "ü"]
    code = "import os, sys; print(sys.argv[1:], os.environ['ODD'], 'HOME' in os.environ)"
    argv = [sys.executable, "-c", code, *odd]
    child = await Child.start(argv, {"ODD": "it's ü", "PYTHONUTF8": "1"}, log, GRACE_S)
    assert await within(SOON_S, child, stop=False) == 0
    assert log.read_text() == f"{odd} it's ü False\n"


def test_clean_environment_drops_slurm_and_mpi_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{prefix}X" for prefix in JOB_VARIABLES]
    assert {"SLURM_X", "PMIX_X", "PMI_X", "OMPI_X", "SUBMITIT_X"} <= set(names)
    for name in names:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("OVER", "1")
    cleaned = clean_environment({"OVER": "2", "NEW": "3", "SLURM_WANTED": "4"})
    assert not set(names) & set(cleaned)
    picked = {k: v for k, v in cleaned.items() if k in ("MINE", "OVER", "NEW", "SLURM_WANTED")}
    assert picked == {"MINE": "1", "OVER": "2", "NEW": "3", "SLURM_WANTED": "4"}
    assert "PATH" in cleaned


async def test_standard_input_is_empty(log: Path) -> None:
    child = await start(["sh", "-c", "cat; echo end"], log)
    assert await within(SOON_S, child, stop=False) == 0
    assert log.read_text() == "end\n"


async def test_stop_ends_the_child_and_its_helpers(log: Path, watch: Watch) -> None:
    child = await start(family("kind"), log)
    watched = watch.said()
    assert await within(SOON_S, child, stop=True) == 128 + signal.SIGTERM
    assert watched.gone(SOON_S)


async def test_child_ignoring_sigterm_is_killed_after_grace(log: Path, watch: Watch) -> None:
    grace_s = 0.3
    child = await start(family("deaf"), log, grace_s)
    watched, began = watch.said(), time.monotonic()
    assert await within(SOON_S, child, stop=True) == 128 + signal.SIGKILL
    assert time.monotonic() - began >= grace_s
    assert watched.gone(SOON_S)


async def test_child_may_finish_within_grace(log: Path) -> None:
    code = "trap 'echo flushed; exit 3' TERM; echo ready; while :; do sleep 0.02; done"
    child = await start(["sh", "-c", code], log)
    deadline = time.monotonic() + SOON_S
    while "ready" not in log.read_text():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert await within(SOON_S, child, stop=True) == 3
    assert log.read_text().endswith("flushed\n")  # sh also reports the end of its sleep


async def test_helpers_of_ended_child_are_killed(log: Path, watch: Watch) -> None:
    child = await start(family("ends"), log)
    assert await within(SOON_S, child, stop=False) == 0
    pid = int(log.read_text().split()[1])
    stat = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + SOON_S
    while stat.exists() and ") Z " not in stat.read_text():
        assert time.monotonic() < deadline, "the helper lives on"
        await asyncio.sleep(0.01)


PARENT = """
import asyncio, sys
from pathlib import Path
from hpc_dynamo.process.child import Child, clean_environment

async def main():
    log, grace_s, *argv = sys.argv[1:]
    child = await Child.start(argv, clean_environment({}), Path(log), float(grace_s))
    await child.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["kind", "deaf"])
def test_kill_9_of_parent_ends_child_and_helpers(mode: str, log: Path, watch: Watch) -> None:
    argv = [sys.executable, "-c", PARENT, str(log), "0.3", *family(mode)]
    with subprocess.Popen(argv) as parent:
        watched = watch.said()
        assert not watched.gone(0)
        parent.kill()
    assert watched.gone(SOON_S)


def test_end_of_terminal_session_ends_child_and_helpers(log: Path, watch: Watch) -> None:
    """Slurm ends a step so: each of its processes gets the signal, including the supervisor."""
    argv = [sys.executable, "-c", PARENT, str(log), "0.3", *family("kind")]
    with subprocess.Popen(argv, start_new_session=True) as parent:
        watched = watch.said()
        os.killpg(parent.pid, signal.SIGTERM)
    assert watched.gone(SOON_S)


async def test_helpers_in_other_sessions_are_killed(log: Path, watch: Watch) -> None:
    child = await start(family("session"), log)
    watched = watch.said()
    await within(SOON_S, child, stop=True)
    assert watched.gone(SOON_S)


FAT = """
import os, subprocess, sys, time
code = "b = bytearray(10**9); b[::4096] = b'x' * len(b[::4096]); print(0, flush=True); input()"
helper = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
print(os.getpid(), helper.pid, flush=True)
time.sleep(600)
"""


async def test_stop_returns_after_all_processes_ended(log: Path, watch: Watch) -> None:
    """A helper is slow to release its memory; GPU memory would be missing after a restart."""
    child = await start([sys.executable, "-c", FAT], log)
    deadline = time.monotonic() + SOON_S
    while not log.exists() or log.read_text().count("\n") < 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    watched = watch(pid for pid in map(int, log.read_text().split()) if pid)
    await within(SOON_S, child, stop=True)
    assert watched.gone(0)


async def test_kill_9_of_supervisor_ends_child_and_helpers(log: Path, watch: Watch) -> None:
    """The kernel's out-of-memory killer may choose it, a person may."""
    child = await start(family("kind"), log)
    watched = watch.said()
    keeper = int(Path(f"/proc/{watched.pids[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(keeper, signal.SIGKILL)
    await within(SOON_S, child, stop=False)
    assert watched.gone(SOON_S)


async def test_many_children_stop_at_once(tmp_path: Path) -> None:
    logs = [tmp_path / f"{n}.log" for n in range(6)]
    children = [await start(["sleep", "600"], log) for log in logs]
    async with asyncio.timeout(SOON_S):
        codes = await asyncio.gather(*(child.stop() for child in children))
    assert codes == [128 + signal.SIGTERM] * 6


async def test_child_inherits_only_passed_descriptors(tmp_path: Path) -> None:
    """The copies of the other processes are closed: the socket ends with the child."""
    listening = socket.create_server(("127.0.0.1", 0))
    other = os.open(tmp_path / "other", os.O_CREAT)
    code = """
import os, socket, sys
given = socket.socket(fileno=int(sys.argv[1]))
fds = [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
print([fd for fd in fds if fd > 2], flush=True)
given.accept()
"""
    argv = (sys.executable, "-c", code, str(listening.fileno()))
    log, handed = tmp_path / "log", (listening.fileno(),)
    child = await Child.start(argv, clean_environment({}), log, 1.0, handed)
    address = listening.getsockname()
    fd = listening.fileno()
    listening.close()
    os.close(other)
    socket.create_connection(address).close()
    assert await child.wait() == 0
    assert log.read_text() == f"[{fd}]\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_helpers_in_other_sessions_are_kept_on_request(log: Path, watch: Watch) -> None:
    """Like jobs that a head submits on its own machine."""
    argv, keep = family("session"), supervisor.KEEP_HELPERS
    child = await Child.start(argv, clean_environment({}), log, GRACE_S, helpers=keep)
    command, helper = watch.said().pids
    helper_alone = watch(iter([helper]))
    os.kill(command, signal.SIGKILL)
    assert await within(SOON_S, child, stop=False) == 128 + signal.SIGKILL
    assert not helper_alone.gone(0.2)
