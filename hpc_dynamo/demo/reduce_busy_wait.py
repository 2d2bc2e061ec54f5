"""Two busy loops of the engine environment, made to sleep: `python tame.py SITE_PACKAGES`.

They are right where every worker has cores to spare. On a machine with as many cores as
workers they take what the model should have, and a request lasted 1 to 39 s at random instead
of 0.2 s (vLLM 0.32.0, NIXL 1.5.1, Linux 6.18, two cores):

NIXL's Python binding gives its progress thread no delay, so that it polls without pause and
takes a whole core, also when idle. A delay only bounds its sleep, events still wake it.

vLLM's processes wait for each other by yielding the processor in a loop. The Linux scheduler
then counts the yielding thread as having had its share, and lets it wait for many seconds
once it has work to do and the cores are busy.
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
    """Edit the installed files. A file that was edited before stays as it is."""
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
