"""Edit two busy loops of the engine environment: `python reduce_busy_wait.py SITE_PACKAGES`.

The loops are fine if every worker has spare cores. On a machine with as many cores as workers they
take the time of the model. A request then took 1 to 39 s at random instead of 0.2 s (vLLM 0.32.0,
NIXL 1.5.1, Linux 6.18, two cores).

NIXL's Python binding gives its progress thread no delay. The thread polls without pause and uses a
whole core, even when idle. A delay only limits its sleep; events still wake it.

vLLM's processes wait for each other by yielding the processor in a loop. The Linux scheduler counts
each yield as used time. On busy cores the thread then waits for many seconds before it can work.
"""

import sys
from pathlib import Path

EDITS = (
    (
        "nixl_cu12/_api.py",
        "agent_config.pthrDelay = 0\n",
        "agent_config.pthrDelay = 1000  # microseconds\n",
    ),
    (
        "vllm/distributed/utils.py",
        "        os.sched_yield()\n",
        "        time.sleep(0.0001)\n",
    ),
)


def reduce_busy_wait(site: Path) -> None:
    """Edit the installed files. Files that were edited before stay unchanged."""
    for name, old, new in EDITS:
        file = site / name
        text = file.read_text()
        if new in text:
            continue
        if text.count(old) != 1:
            sys.exit(f"{file} does not have this line once: {old.strip()}")
        partial = file.with_suffix(".partial")
        partial.write_text(text.replace(old, new))
        partial.rename(file)
        print(f"{file}: {old.strip()} -> {new.strip()}")


if __name__ == "__main__":
    reduce_busy_wait(Path(sys.argv[1]))
