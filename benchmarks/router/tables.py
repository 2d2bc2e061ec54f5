"""Results of the router benchmark as tables: medians over the repeats."""

import os
import platform
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

Rows = dict[str, tuple[str, ...]]  # title of a row -> its figures
TRACE: Rows = {
    "events of prompts, batches/s": ("prompt_batches_s",),
    "  blocks/s": ("prompt_blocks_s",),
    "  CPU ns per block": ("prompt_cpu_ns",),
    "events of answers, one block each, batches/s": ("answer_batches_s",),
    "  CPU ns per batch": ("answer_cpu_ns",),
    "evictions, blocks/s": ("eviction_blocks_s",),
    "  CPU ns per block ": ("eviction_cpu_ns",),
    "decisions/s, prompts of the trace": ("trace_decisions_s",),
    "  found, p50 / p99 µs": ("trace_find_p50_us", "trace_find_p99_us"),
    "  decision, p50 / p99 µs": ("trace_decision_p50_us", "trace_decision_p99_us"),
    "decisions/s, prompts of 8,000 tokens": ("long_decisions_s",),
    "  found, p50 / p99 µs ": ("long_find_p50_us", "long_find_p99_us"),
    "  decision, p50 / p99 µs ": ("long_decision_p50_us", "long_decision_p99_us"),
    "hashing 8,000 tokens, µs": ("hash_us",),
    "share of the blocks found": ("trace_held",),
}
FILL: Rows = {
    "filled, blocks/s": ("filled_blocks_s",),
    "longest pause for 500 blocks, ms": ("longest_ms",),
    "  of CPU time": ("longest_cpu_ms",),
    "bytes per block (resident)": ("bytes_a_block",),
    "decisions/s, prompts of 8,000 tokens": ("long_decisions_s",),
    "  found, p50 / p99 µs": ("long_find_p50_us", "long_find_p99_us"),
    "  decision, p50 / p99 µs": ("long_decision_p50_us", "long_decision_p99_us"),
    "share of the blocks found": ("long_held",),
}


class Results:
    """All results by run and side."""

    def __init__(self) -> None:
        self.runs = dict[str, dict[str, list[dict[str, float]]]]()

    def add(self, run: str, said: dict[str, Any]) -> None:
        side = f"{said['name']}\n{said['version']}"
        self.runs.setdefault(run, {}).setdefault(side, []).append(said["figures"])


def tables(found: Results) -> Iterator[Table]:
    """Yield a table per run; its title names the machine."""
    for run, sides in found.runs.items():
        table = Table(title=f"{run}\n{_where()}", caption=_repeats(sides))
        table.add_column("")
        for side in sides:
            table.add_column(side, justify="right")
        for name, figures in (TRACE if run.startswith("trace") else FILL).items():
            table.add_row(name, *(_cell(repeats, figures) for repeats in sides.values()))
        yield table


def _cell(repeats: list[dict[str, float]], figures: tuple[str, ...]) -> str:
    return " / ".join(_spread([each[figure] for each in repeats]) for figure in figures)


def _spread(values: list[float]) -> str:
    middle = _short(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({_short(min(values))} to {_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 2 else f"{value:.2f}"


def _repeats(sides: dict[str, list[dict[str, float]]]) -> str:
    count = max(map(len, sides.values()))
    return f"median (least to most) of {count}" if count > 1 else "measured once"


def _where() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    cpu, python = next(names, platform.machine()), platform.python_version()
    return f"{cpu}, {cores} cores, load average {load:.1f} at the end, Python {python}"
