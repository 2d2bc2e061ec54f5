"""Edit installed packages of an engine environment: `python edit_packages.py ENGINE SITE_PACKAGES`.

Only files of the demo's own environments are edited.

NIXL_POLLING and VLLM_WAITING: two loops without a pause, fine if every worker has spare cores. On a
machine with as many cores as workers they take the time of the model. A request then took 1 to 39 s
at random instead of 0.2 s (vLLM 0.32.0, NIXL 1.5.1, Linux 6.18, two cores).

NIXL's Python binding gives its progress thread no delay. The thread polls without pause and uses a
whole core, even when idle. A delay only limits its sleep; events still wake it.

vLLM's processes wait for each other by yielding the processor in a loop. The Linux scheduler counts
each yield as used time. On busy cores the thread then waits for many seconds before it can work.

NIXL_MEMORY: SGLang 0.5.23 registers its KV cache as GPU memory, also on CPUs
(disaggregation/nixl/conn.py). UCX finds no GPU at these addresses and refuses them. The name for
GPU memory therefore stands for host memory.
"""

import sys
from pathlib import Path

Edit = tuple[str, str, str]  # file in site-packages, old text, new text

NIXL_POLLING = (
    "nixl_cu12/_api.py",
    "agent_config.pthrDelay = 0\n",
    "agent_config.pthrDelay = 1000  # microseconds\n",
)
VLLM_WAITING = (
    "vllm/distributed/utils.py",
    "        os.sched_yield()\n",
    "        time.sleep(0.0001)\n",
)
NIXL_MEMORY = (
    "nixl_cu12/_api.py",
    '"VRAM": nixlBind.VRAM_SEG,\n',
    '"VRAM": nixlBind.DRAM_SEG,\n',
)
EDITS: dict[str, tuple[Edit, ...]] = {
    "vllm": (NIXL_POLLING, VLLM_WAITING),
    "sglang": (NIXL_POLLING, NIXL_MEMORY),
}


def edit_packages(engine: str, site: Path) -> None:
    """Edit the installed files. Files that were edited before stay unchanged.

    A file is replaced, so that hard links to it in other environments keep the old text.
    """
    for name, old, new in EDITS[engine]:
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
    edit_packages(sys.argv[1], Path(sys.argv[2]))
