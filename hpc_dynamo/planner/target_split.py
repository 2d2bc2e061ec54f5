"""Splits the ready workers between the roles, from the workers that each role needs."""

from math import ceil, floor, inf
from typing import NamedTuple

from hpc_dynamo.config import Planner, PriorityTarget, Role
from hpc_dynamo.planner.signals import CapacityGap, TargetSplit


class WorkerNeed(NamedTuple):
    """Workers that a load needs, as fractions. `unreachable` names targets that none can meet."""

    prefill: float
    decode: float
    unreachable: str = ""

    @property
    def total(self) -> float:
        return self.prefill + self.decode


class ReadyWorkers(NamedTuple):
    """Number of ready workers per role."""

    prefill: int
    decode: int

    @property
    def total(self) -> int:
        return self.prefill + self.decode


def target_split(load_need: WorkerNeed, ready: ReadyWorkers, config: Planner) -> TargetSplit:
    """Return the wanted split of the ready workers; their sum stays the same.

    `load_need` is what the load requires, without the minimum of each role.

    The pressure of a role is its need divided by its workers. The balanced split minimizes the
    larger of the two pressures.

    1. While no role needs more workers than it has, nothing changes.
    2. If the balanced split meets both needs, the short role gets half of the workers that it lacks
       compared with that split, rounded up. It gets at least its need. Nothing moves if the
       balanced split reduces the pressure by a factor of at most 1 + hysteresis. The
       role of the priority target keeps its need plus that margin.
    3. If no split meets both needs, `priority_target` decides. `ttft`: prefill gets its need,
       decode the rest. `itl`: decode gets its share in proportion to the needs, rounded up. That
       is enough for the load that prefill lets through; the other requests are queued. The role of
       the priority target gives up workers only beyond its need plus the margin.

    Two moves in opposite directions thus require that the ratio of the needs changes by a factor of
    more than 1 + hysteresis.
    """
    if ready.total < config.min_prefill_workers + config.min_decode_workers:
        return _target(load_need, ready, ready.prefill, "too few workers are ready to split")
    need = _at_least_minimum(load_need, config)
    now, balanced = _pressure(need, ready), _balanced_split(need, ready, config)
    if now <= 1:
        return _target(need, ready, ready.prefill, "no role is short")
    if (after := _pressure(need, balanced)) > 1:
        prefill = _priority_split(load_need, ready, config)
        return _target(need, ready, prefill, f"{config.priority_target} has priority")
    if now <= after * (1 + config.hysteresis):
        return _target(need, ready, ready.prefill, "a move would help too little")
    if need.prefill > ready.prefill:
        short, prefill = "prefill", _halfway(need.prefill, ready.prefill, balanced.prefill)
    else:
        decode = _halfway(need.decode, ready.decode, balanced.decode)
        short, prefill = "decode", ready.total - decode
    prefill = _keep_priority(prefill, load_need, ready, config)
    return _target(need, ready, prefill, f"{short} is short")


def capacity_gap(
    load_need: WorkerNeed, ready: ReadyWorkers, changing_role: int, config: Planner
) -> CapacityGap:
    """Return the missing and spare workers, compared with those ready or changing their role."""
    need, present = _at_least_minimum(load_need, config), ready.total + changing_role
    missing = ceil(need.prefill) + ceil(need.decode) - present
    keep = _with_margin(load_need.prefill, config.min_prefill_workers, config)
    keep += _with_margin(load_need.decode, config.min_decode_workers, config)
    prefill_short = need.prefill - ready.prefill > need.decode - ready.decode
    role = Role.prefill if prefill_short else Role.decode
    return CapacityGap(missing=max(missing, 0), spare=max(present - keep, 0), role=role)


def _at_least_minimum(need: WorkerNeed, config: Planner) -> WorkerNeed:
    prefill = max(need.prefill, config.min_prefill_workers)
    decode = max(need.decode, config.min_decode_workers)
    return WorkerNeed(prefill, decode, need.unreachable)


def _pressure(need: WorkerNeed, ready: ReadyWorkers) -> float:
    """Return the larger pressure of the two roles."""
    if not (ready.prefill and ready.decode):
        return inf
    return max(need.prefill / ready.prefill, need.decode / ready.decode)


def _balanced_split(need: WorkerNeed, ready: ReadyWorkers, config: Planner) -> ReadyWorkers:
    """Return the balanced split within the minimum of each role."""
    total, fair = ready.total, floor(ready.total * need.prefill / need.total)
    highest = total - config.min_decode_workers
    counts = (max(config.min_prefill_workers, min(n, highest)) for n in (fair, fair + 1))
    splits = (ReadyWorkers(prefill, total - prefill) for prefill in counts)
    return min(splits, key=lambda split: _pressure(need, split))


def _halfway(need: float, ready: int, balanced: int) -> int:
    return max(ceil(need), ready + ceil((balanced - ready) / 2))


def _keep_priority(
    prefill: int, load_need: WorkerNeed, ready: ReadyWorkers, config: Planner
) -> int:
    """Return the prefill workers such that the priority role keeps its need plus the margin."""
    if config.priority_target is PriorityTarget.ttft:
        keep = _with_margin(load_need.prefill, config.min_prefill_workers, config)
        return max(prefill, min(ready.prefill, keep))
    keep = _with_margin(load_need.decode, config.min_decode_workers, config)
    return min(prefill, ready.total - min(ready.decode, keep))


def _priority_split(load_need: WorkerNeed, ready: ReadyWorkers, config: Planner) -> int:
    """Return the prefill workers if no split meets both needs."""
    if config.priority_target is PriorityTarget.ttft:
        prefill = _priority_workers(
            load_need.prefill, ready.prefill, config.min_prefill_workers, config
        )
    else:
        share = min(load_need.decode, ready.total * load_need.decode / max(load_need.total, 1.0))
        decode = _priority_workers(share, ready.decode, config.min_decode_workers, config)
        prefill = ready.total - decode
    highest = ready.total - config.min_decode_workers
    return max(config.min_prefill_workers, min(prefill, highest))


def _priority_workers(need: float, ready: int, minimum: int, config: Planner) -> int:
    return ceil(need) if need > ready else min(ready, _with_margin(need, minimum, config))


def _with_margin(need: float, minimum: int, config: Planner) -> int:
    return max(minimum, ceil(need * (1 + config.hysteresis)))


def _target(need: WorkerNeed, ready: ReadyWorkers, prefill: int, reason: str) -> TargetSplit:
    decode = ready.total - prefill
    shortfall = [need.unreachable] if need.unreachable else []
    for target, role, needs, gets in (
        ("TTFT", "prefill", need.prefill, prefill),
        ("ITL", "decode", need.decode, decode),
    ):
        if needs > gets:
            shortfall.append(f"{target}: {role} needs {needs:.1f} workers and gets {gets}")
    reason = f"{reason}: prefill needs {need.prefill:.2f}, decode {need.decode:.2f}"
    return TargetSplit(
        prefill=prefill, decode=decode, reason=reason, shortfall="; ".join(shortfall)
    )
