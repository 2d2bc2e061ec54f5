"""Baselines of the planner benchmark: an oracle, and NVIDIA Dynamo's planner."""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType

import msgspec

from benchmarks.planner import dynamo_process
from benchmarks.planner.loads import Load
from hpc_dynamo.config import Role
from hpc_dynamo.planner.signals import ExpectedLoad, PlannerDecision, RoleMove, Signals, TargetSplit
from hpc_dynamo.simulation import SimulatedJob, TraceRequest, simulate

# Load before each interval, so that it does not start with an empty job.
WARM_S = 15.0

# Modes of Dynamo's planner. `sla` predicts; `default` has static thresholds of queues and caches.
# Both decide every five seconds.
SLA: dict[str, object] = {
    "optimization_target": "sla",
    "throughput_adjustment_interval_seconds": 30,
    "enable_throughput_scaling": True,
}
MODES: dict[str, dict[str, object]] = {
    "default": {},
    "sla": SLA,
    "sla + load": {**SLA, "enable_load_scaling": True},
}


def moved(seen: Signals, prefill: int, why: str = "") -> PlannerDecision:
    """Return the decision for this number of prefill workers."""
    more, total = prefill - seen.prefill, seen.prefill + seen.decode
    roles = (Role.decode, Role.prefill) if more > 0 else (Role.prefill, Role.decode)
    move = RoleMove(count=abs(more), old=roles[0], new=roles[1]) if more else None
    wanted = TargetSplit(prefill=prefill, decode=total - prefill, reason=why)
    return PlannerDecision(signals=seen, expected=ExpectedLoad(), target=wanted, move=move)


class Scheduled:
    """The oracle: moves to the best split of each interval at its start."""

    def __init__(self, splits: list[int], interval_s: float) -> None:
        self._splits, self._interval_s = splits, interval_s

    def decide(self, seen: Signals) -> PlannerDecision:
        number = round(seen.at / self._interval_s)
        prefill = self._splits[min(number, len(self._splits) - 1)]
        return moved(seen, prefill - min(0, seen.changing_role))


def best_splits(job: SimulatedJob, load: Load) -> list[int]:
    """Return the prefill workers of the best static split of each interval.

    Each interval is simulated separately. The search starts at the previous split, since goodput
    over the split has one peak.
    """
    best, splits = len(job.ranks) // 2, list[int]()
    for number in range(int(load.seconds // job.interval_s) + 1):
        begin = number * job.interval_s
        part, warm = _part(load.requests, begin, begin + job.interval_s)
        best = _climb(lru_cache(partial(_good, job, part, warm)), best, len(job.ranks))
        splits.append(best)
    return splits


def _climb(good: Callable[[int], tuple[float, float]], best: int, total: int) -> int:
    for step in (3, 1):
        while True:
            near = [p for p in (best, best - step, best + step) if 1 <= p < total]
            better = max(near, key=good)
            if better == best:
                break
            best = better
    return best


def _part(
    requests: list[TraceRequest], begin: float, end: float
) -> tuple[list[TraceRequest], float]:
    """Return the requests of an interval and of a time before it, and the length of that time."""
    first = max(0.0, begin - WARM_S)
    part = [replace(r, at=r.at - first) for r in requests if first <= r.at < end]
    return part, begin - first


def _good(
    job: SimulatedJob, part: Sequence[TraceRequest], warm: float, prefill: int
) -> tuple[float, float]:
    """Return the requests within both targets; ties are ordered by lower TTFT and ITL."""
    decode = len(job.ranks) - prefill
    workers = {Role.prefill: prefill, Role.decode: decode}
    outcome = simulate(replace(job, workers=workers), part)
    counted = [s for s in outcome.completed if s.at >= warm]
    late = sum(s.ttft_s / job.targets.ttft_s + s.itl_s / job.targets.itl_s for s in counted)
    return sum(s.within_targets(job.targets) for s in counted), -late / max(1, len(counted))


class Dynamo:
    """Dynamo's planner in a child process, with the same signals as the planner of hpc_dynamo."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def decide(self, seen: Signals) -> PlannerDecision:
        """Return the decision of the child. Raises RuntimeError if it ended."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(msgspec.json.encode(seen).decode() + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"Dynamo's planner ended with {self._process.wait(10)}")
        wanted = json.loads(answer)
        total = seen.prefill + seen.decode
        prefill = wanted["prefill"] or total - (wanted["decode"] or seen.decode)
        return moved(seen, max(1, min(prefill, total - 1)))


@contextmanager
def dynamo(
    env: Path, job: SimulatedJob, options: Mapping[str, object], log: Path
) -> Iterator[Dynamo]:
    """Start Dynamo's planner in its environment, with the settings of the job."""
    limits, targets = job.engine.sizes, job.targets
    targets_ms = {"ttft_ms": 1e3 * targets.ttft_s, "itl_ms": 1e3 * targets.itl_s}
    setting = {
        "timing": asdict(job.engine.timing),
        "step_tokens": limits.step_tokens,
        "sequences": limits.max_sequences,
        "cache_tokens": limits.cache_tokens,
        "context": 131_072,
        "workers": len(job.ranks),
        "options": {**targets_ms, **options},
    }
    program = _file(dynamo_process)
    argv = (str(env / "bin/python"), program, json.dumps(setting))
    pipe = subprocess.PIPE
    with log.open("w") as errors:
        process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        try:
            yield Dynamo(process)
        finally:
            process.kill()
            process.communicate()


def _file(module: ModuleType) -> str:
    assert module.__file__
    return module.__file__
