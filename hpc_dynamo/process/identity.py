"""Start and user of a process, since process ids are reused.

Source: proc(5), files stat (field 22) and status.
"""

import re
from pathlib import Path

START = 19  # field of /proc/PID/stat, counted from the state on
EFFECTIVE_UID = re.compile(r"^Uid:\s+\d+\s+(\d+)", re.MULTILINE)


def start_ticks(pid: int) -> int:
    """Return the start of a process in clock ticks since boot; 0 if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[START])
    except OSError:
        return 0


def process_uid(pid: int) -> int | None:
    """Return the effective user id of a process; None if there is no such process."""
    try:
        found = EFFECTIVE_UID.search(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return int(found[1]) if found else None
