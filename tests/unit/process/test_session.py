"""CPU time and state of the processes of a session."""

import asyncio
import os
import signal
import subprocess
import sys

from hpc_dynamo.process.session import NO_PROCESSES, SessionMonitor, session_usages

BUSY = "import os\nwhile os.times().user < 0.3: pass\nprint(flush=True)\ninput()"


def test_usage_of_a_session() -> None:
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", BUSY]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, start_new_session=True) as child:
        assert child.stdout
        child.stdout.readline()
        usage = session_usages()[child.pid]
        assert 0.3 <= usage.cpu_s < 30
        assert not usage.stopped
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert session_usages()[child.pid].stopped
        child.kill()
    assert child.pid not in session_usages()


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
