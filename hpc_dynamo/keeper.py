"""Runs one command so that it cannot outlive whoever started it.

    python -I -S keeper.py GRACE_S COMMAND [ARG …]      (started by child.py)

The command gets a process group of its own. When our standard input ends, because the
parent closed it or died of anything at all, the group is asked to end (SIGTERM) and after
GRACE_S seconds made to (SIGKILL). A command that ends by itself leaves no helpers behind
either. Standard library only and small: one such process stands beside every engine.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: orphaned grandchildren become ours to reap


def main() -> int:
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        # A handler, not SIG_IGN: the command must not inherit that it is ignored.
        signal.signal(sig, lambda *_: None)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    grace_s, argv = float(sys.argv[1]), sys.argv[2:]
    try:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as e:
        print(f"{argv[0]} cannot be run: {e.strerror}", file=sys.stderr)
        return 127
    threading.Thread(target=end_with_parent, args=(child, grace_s), daemon=True).start()
    code = child.wait()
    signal_group(child.pid, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def end_with_parent(child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    while os.read(0, 4096):
        pass
    signal_group(child.pid, signal.SIGTERM)
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        signal_group(child.pid, signal.SIGKILL)


def signal_group(group: int, sig: signal.Signals) -> None:
    try:
        os.killpg(group, sig)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main())
