"""Run one command so that it cannot outlive the process that started it.

    python -I -S supervisor.py GRACE_S HELPERS COMMAND [ARG …]      (started by child.py)

The command gets its own process group. The group gets SIGTERM when the standard input of this
process ends, because the parent closed it or died, and SIGKILL after GRACE_S seconds. Any input
means SIGKILL at once. When the command ends by itself, its group is killed; if HELPERS is `kill`,
also helpers that left the group, and if it is `keep`, these continue. The command inherits the file
descriptors of this process. Standard library only and small: one such process runs for every
engine.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

KILL = b"kill"  # input for SIGKILL at once
KILL_HELPERS, KEEP_HELPERS = "kill", "keep"  # values of HELPERS

PR_SET_PDEATHSIG = 1  # linux/prctl.h: signal when the parent dies
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: orphaned descendants become children


def main() -> int:
    """Run the command and return its exit code, or 128 + n after signal n."""
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        # A handler, not SIG_IGN, since the command would inherit SIG_IGN.
        signal.signal(sig, lambda *_: None)
    grace_s, helpers, argv = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if helpers == KILL_HELPERS:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
    inherited = [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=die_with_supervisor,
            close_fds=False,
        )
    except OSError as e:
        print(f"{argv[0]} cannot be run: {e.strerror}", file=sys.stderr)
        return 127
    for fd in inherited:  # only the command may keep them open
        with contextlib.suppress(OSError):
            os.close(fd)
    threading.Thread(target=end_with_parent, args=(child, grace_s), daemon=True).start()
    code = child.wait()
    signal_group(child.pid, signal.SIGKILL)
    if helpers == KILL_HELPERS:
        kill_descendants()
    return code if code >= 0 else 128 - code


def die_with_supervisor() -> None:
    """Request SIGTERM for the death of the supervisor, even by `kill -9`. Runs in the new process
    before the command; only the command can then still stop its own helpers."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_parent(child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Wait for the end of standard input, then stop the command and its group."""
    kill = os.read(0, 4096)
    if not kill:
        signal_group(child.pid, signal.SIGTERM)
        signal_group(child.pid, signal.SIGCONT)  # a stopped process gets SIGTERM when it continues
    try:
        child.wait(0 if kill else grace_s)
    except subprocess.TimeoutExpired:
        signal_group(child.pid, signal.SIGKILL)


def kill_descendants() -> None:
    """Kill and await helpers that left the process group; they are now children of this process."""
    while True:
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> list[int]:
    """Return the process ids of this process's children."""
    found = list[int]()
    for thread in os.listdir("/proc/self/task"):
        # The other thread may end meanwhile.
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found


def signal_group(group: int, sig: signal.Signals) -> None:
    try:
        os.killpg(group, sig)
    except ProcessLookupError:
        return


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
