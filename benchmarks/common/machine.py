"""Description of the machine that a benchmark runs on."""

import platform
from pathlib import Path


def cpu_model() -> str:
    """Return the CPU's name from /proc/cpuinfo, else the architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
