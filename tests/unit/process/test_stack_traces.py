"""Stack traces of processes that hang."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_dynamo.process.stack_traces import ENVIRONMENT, abort_session

CHILD = """
import threading
def waits_for_ever():
    print("up", flush=True)
    threading.Event().wait()
waits_for_ever()
"""
PARENT = f"""
import subprocess, sys
sys.exit(subprocess.run([sys.executable, "-c", {CHILD!r}]).returncode)
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_child_of_the_leader_writes_its_stack_and_no_core_dump(
    tmp_path: Path, *, stopped: bool
) -> None:
    argv, env = [sys.executable, "-c", PARENT], os.environ | ENVIRONMENT
    pipe, log = subprocess.PIPE, tmp_path / "log"
    with (
        log.open("wb") as err,
        subprocess.Popen(
            argv, stdout=pipe, stderr=err, start_new_session=True, cwd=tmp_path, env=env
        ) as leader,
    ):
        assert leader.stdout
        assert leader.stdout.readline() == b"up\n"
        child = int(Path(f"/proc/{leader.pid}/task/{leader.pid}/children").read_text())
        if stopped:
            os.kill(child, signal.SIGSTOP)
        abort_session(leader.pid)
        if stopped:  # the signal waits until it continues
            assert leader.poll() is None
            os.kill(child, signal.SIGCONT)
        assert leader.wait() == 256 - signal.SIGABRT
    assert "waits_for_ever" in log.read_text()
    assert list(tmp_path.iterdir()) == [log]
