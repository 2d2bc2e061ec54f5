"""CPU time and state of the processes of a session."""

import os
import signal
import subprocess
import sys

from hpc_dynamo.process.session import SessionUsage, session_usage

BUSY = "import os\nwhile os.times().user < 0.3: pass\nprint(flush=True)\ninput()"

# hashlib releases the lock of the interpreter.
TWO_THREADS = """
import hashlib, os, sys, threading
os.sched_setaffinity(0, {int(sys.argv[1])})
def work():
    while os.times().user < 0.4:
        hashlib.sha256(bytes(10**6))
other = threading.Thread(target=work)
other.start()
work()
print(flush=True)
input()
"""


def test_usage_of_a_session() -> None:
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", BUSY]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, start_new_session=True) as child:
        assert child.stdout
        child.stdout.readline()
        usage = session_usage(child.pid)
        assert 0.3 <= usage.cpu_s < 30
        assert not usage.stopped
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert session_usage(child.pid).stopped
        child.kill()
    assert session_usage(child.pid) == SessionUsage(0.0, stopped=False)


def test_threads_that_wait_for_a_cpu() -> None:
    """Two threads on one CPU: each waits while the other one computes."""
    (cpu, *_) = os.sched_getaffinity(0)
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", TWO_THREADS, str(cpu)]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, start_new_session=True) as child:
        assert child.stdout
        child.stdout.readline()
        assert session_usage(child.pid).waited_s > 0.05
        child.kill()
