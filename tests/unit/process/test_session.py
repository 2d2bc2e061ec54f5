"""CPU time and state of the processes of a session."""

import asyncio
import os
import signal
import subprocess
import sys

from hpc_dynamo.process.session import NO_PROCESSES, SessionMonitor, members, session_usages

BUSY = "import os\nwhile os.times().user < 0.3: pass\nprint(flush=True)\ninput()"

# hashlib releases the lock of the interpreter.
TWO_THREADS = """
import hashlib, os, sys, threading
os.sched_setaffinity(0, {int(sys.argv[1])})
def work(until_s):
    while os.times().user < until_s:
        hashlib.sha256(bytes(10**6))
threading.Thread(target=work, args=(60,), daemon=True).start()
work(0.4)
print(flush=True)
input()
"""


def test_usage_of_a_session() -> None:
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", BUSY]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, start_new_session=True) as child:
        assert child.stdout
        child.stdout.readline()
        usage = session_usages([child.pid])[child.pid]
        assert 0.3 <= usage.cpu_s < 30
        assert not usage.stopped
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert session_usages([child.pid])[child.pid].stopped
        child.kill()
    assert child.pid not in session_usages([child.pid])


async def test_callers_share_a_scan_until_it_is_old() -> None:
    session = os.getsid(0)
    fresh, lasting = SessionMonitor(0.0), SessionMonitor(1000.0)
    usages = await asyncio.gather(*(lasting.usage(session) for _ in range(20)))
    assert all(usage is usages[0] for usage in usages)
    assert await lasting.usage(session) is usages[0]
    assert await lasting.usage(-1) == NO_PROCESSES
    assert await fresh.usage(session) is not await fresh.usage(session)


async def test_a_cancelled_caller_leaves_the_scan_to_others() -> None:
    monitor = SessionMonitor(1000.0)
    first = asyncio.create_task(monitor.usage(os.getsid(0)))
    second = asyncio.create_task(monitor.usage(os.getsid(0)))
    await asyncio.sleep(0)
    first.cancel()
    assert await second != NO_PROCESSES


def test_threads_that_wait_for_a_cpu() -> None:
    """Two threads on one CPU: each waits while the other one computes."""
    (cpu, *_) = os.sched_getaffinity(0)
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", TWO_THREADS, str(cpu)]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, start_new_session=True) as child:
        assert child.stdout
        child.stdout.readline()
        times = session_usages([child.pid])[child.pid].threads.values()
        assert sum(each.waited_s for each in times) > 0.05
        assert all(each.ran_s > 0 for each in times)
        child.kill()


def test_descendants_that_left_the_session_belong_to_it() -> None:
    """As the engine of a Podman container, whose parent is in a session of its own."""
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}], {})"
    inner = start.format(BUSY, "")
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", start.format(inner, "start_new_session=True")]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, start_new_session=True) as child:
        assert child.stdout
        child.stdout.readline()
        pids = {int(process.name) for process, _ in members([child.pid])[child.pid]}
        assert len(pids) == 3
        assert session_usages([child.pid])[child.pid].cpu_s >= 0.3
