"""Find and signal a process of a run on this node. Standard library only.

    python -I -S on_node.py SIGNAL AGENT_PID WORD…

Sends SIGNAL (a number) to the descendants of the agent that have all WORDs as arguments. Without
any WORD the agent itself gets it. Prints the process ids. Supervisors are left out: they repeat the
command line of their child.
"""

import os
import sys
from pathlib import Path


def main() -> None:
    """Send the signal."""
    number, agent, words = int(sys.argv[1]), int(sys.argv[2]), set(sys.argv[3:])
    known = b"hpc_dynamo" in _raw(agent) or b"submitit" in _raw(agent)
    if not (known and _is_own(agent)):
        sys.exit(f"process {agent} is no agent")
    found = [pid for pid in _descendants(agent) if _matches(pid, words)] if words else [agent]
    for pid in found:
        os.kill(pid, number)
    print(*found)


def _matches(pid: int, words: set[str]) -> bool:
    command = [os.fsdecode(word) for word in _raw(pid).split(b"\0")]
    supervises = any(word.endswith("process/supervisor.py") for word in command)
    return words <= set(command) and not supervises


def _is_own(pid: int) -> bool:
    """Return True if the process is this user's: process ids are reused."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return any(
        line.split()[2] == str(os.geteuid())
        for line in status.splitlines()
        if line.startswith("Uid:")
    )


def _raw(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _descendants(root: int) -> list[int]:
    """Return the processes below `root`. The parent is the second word after the name."""
    children = dict[int, list[int]]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = list[int](), [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


if __name__ == "__main__":
    main()
