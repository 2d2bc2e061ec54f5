"""Checks of the soak benchmark: errors, resources at the end, growth."""

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.soak.results import SoakResults, SoakSample

# Minimum lifetime for the growth check, in which caches fill; MiB per hour.
LONG_MIN, GROWTH = 20.0, 20.0
# Limits for a process, compared with the idle start. 1,024 waiting requests are part of the memory.
MORE_MIB, MORE_THREADS = 150.0, 8
FOLDER_GROWTH = 100.0  # MiB per hour
LOST = 0.005  # share of the requests with faults
REFUSED = "status 429"
MORE_TASKS = 20  # asyncio's, when the job is idle again
KEPT_CONNECTIONS = 4  # that a process opens to engines at its own time and keeps


def nonzero_gauges(gauges: dict[str, float]) -> dict[str, float]:
    """Return the gauges that are not zero; all but tasks should be when the job is idle."""
    return {n: v for n, v in gauges.items() if v and "_total" not in n and "tasks" not in n}


def memory_growth(samples: Sequence[SoakSample], name: str) -> float:
    """Return the growth of a process in MiB per hour: the slope of RSS over the last two thirds.

    Counts only the last process of this name, without its first third. Returns nan for fewer than
    three samples.
    """
    seen = [s for s in samples if name in s.processes]
    same = [s for s in seen if s.processes[name].pid == seen[-1].processes[name].pid]
    late = same[len(same) // 3 :]
    if len(late) < 3:
        return float("nan")
    hours = [s.at_s / 3600 for s in late]
    rss = [s.processes[name].rss_mib for s in late]
    return statistics.linear_regression(hours, rss).slope


def checks(found: SoakResults) -> Iterator[tuple[str, str, bool]]:
    """Yield name, observed value and result of each check."""
    yield "the run is complete", f"{len(found.samples)} samples", bool(found.end)
    if found.with_faults:
        yield _lost(found)
    else:
        yield "no errors", str(dict(found.errors) or 0), not found.errors
    if not found.end:
        return
    left = nonzero_gauges(found.gauges)
    yield "all resources are released", str(left or 0), not left
    pids = [{name: p.pid for name, p in side.items()} for side in (found.start, found.end)]
    same = found.with_faults or pids[0] == pids[1]
    yield "the same processes", ", ".join(pids[1]), same and pids[0].keys() == pids[1].keys()
    fds = {n: p.fds - found.start[n].fds for n, p in found.end.items() if n in found.start}
    more = {name: count for name, count in fds.items() if count > KEPT_CONNECTIONS}
    yield "no more file descriptors", str(more or 0), not more
    before, after = found.start_gauges, found.gauges
    tasks = {n: int(v - before.get(n, v)) for n, v in after.items() if "tasks" in n}
    seen = ", ".join(f"{name} {more:+d}" for name, more in tasks.items())
    yield f"at most {MORE_TASKS} more tasks", seen, all(n <= MORE_TASKS for n in tasks.values())
    yield from _bounds(found)


def _lost(found: SoakResults) -> tuple[str, str, bool]:
    """Check the lost requests. A refused request is none: a fault leaves less than the capacity
    that the load takes, and a client sends it again after 429."""
    lost = {kind: count for kind, count in found.errors.items() if kind != REFUSED}
    count, refused = sum(lost.values()), found.errors.get(REFUSED, 0)
    seen = f"{count} of {found.sent} after {len(found.faults)} faults: {lost}; {refused} refused"
    return f"at most {LOST:.1%} of requests lost", seen, count <= LOST * found.sent


def _bounds(found: SoakResults) -> Iterator[tuple[str, str, bool]]:
    """Yield the checks of memory, threads and the run folder."""
    long = {name: _lifetime_min(found, name) >= LONG_MIN for name in found.start}
    grown = {name: memory_growth(found.samples, name) for name in found.start if long[name]}
    most = max(grown.values(), default=0.0)
    seen = f"at most {most:+.1f} MiB/h: {', '.join(grown)}" if grown else "run too short"
    yield f"memory grows by less than {GROWTH:.0f} MiB/h", seen, most < GROWTH
    peaks = {name: _peak_mib(found, name) - p.rss_mib for name, p in found.start.items()}
    seen = ", ".join(f"{name} {more:+.0f}" for name, more in peaks.items())
    bounded = max(peaks.values()) <= MORE_MIB
    yield f"peak of memory at most {MORE_MIB:.0f} MiB above the start", seen, bounded
    both = found.start.keys() & found.end.keys()
    threads = {name: found.end[name].threads - found.start[name].threads for name in sorted(both)}
    bounded = all(more <= MORE_THREADS for more in threads.values())
    seen = ", ".join(f"{name} {more:+d}" for name, more in threads.items())
    yield (
        f"at most {MORE_THREADS} more threads",
        seen,
        all(more <= MORE_THREADS for more in threads.values()),
    )
    if len(found.samples) > 1:
        first, last = found.samples[0], found.samples[-1]
        hours = (last.at_s - first.at_s) / 3600
        rate = (last.run_folder_mib - first.run_folder_mib) / hours
        seen = f"{rate:.1f} MiB/h, {last.run_folder_mib:.1f} MiB at the end"
        bounded = rate <= FOLDER_GROWTH or found.minutes < LONG_MIN
        yield f"run folder grows by less than {FOLDER_GROWTH:.0f} MiB/h", seen, bounded


def _lifetime_min(found: SoakResults, name: str) -> float:
    """Return how long the last process of this name was under load, in minutes."""
    seen = [s for s in found.samples if name in s.processes]
    same = [s.at_s for s in seen if s.processes[name].pid == seen[-1].processes[name].pid]
    return (same[-1] - same[0]) / 60 if same else 0.0


def _peak_mib(found: SoakResults, name: str) -> float:
    seen = (s.processes[name].rss_mib for s in found.samples if name in s.processes)
    return max(seen, default=found.start[name].rss_mib)
