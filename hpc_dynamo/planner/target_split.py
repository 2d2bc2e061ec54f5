"""Who gets the workers: from what each role needs to how many of each there are to be."""

from math import ceil, floor, inf
from typing import NamedTuple

from hpc_dynamo.config import Planner, PriorityTarget, Role
from hpc_dynamo.planner.signals import CapacityGap, TargetSplit


class WorkerNeed(NamedTuple):
    """Workers of each role that a load needs, with fractions. `lost` names a target that no
    number of workers would meet."""

    prefill: float
    decode: float
    unreachable: str = ""

    @property
    def total(self) -> float:
        return self.prefill + self.decode


class ReadyWorkers(NamedTuple):
    """Workers that there are."""

    prefill: int
    decode: int

    @property
    def total(self) -> int:
        return self.prefill + self.decode


def target_split(need: WorkerNeed, ready: ReadyWorkers, config: Planner) -> TargetSplit:
    """The wanted split of the workers that are ready. Their sum stays.

    A role's pressure is what it needs over what it has; the even split is the one in which the
    greater of the two is the least.

    1. While no role needs more workers than it has, nothing changes.
    2. Where the even split gives both what they need, the role that is short gets half of the
       workers that this split gives it more, rounded up, but no less than it needs; none at all
       where even that split would ease it by no more than a factor of 1 + margin. The protected
       role gives up only what it could do without under `margin` more load.
    3. Where none gives both what they need, `protect` decides. `ttft`: prefill gets its need,
       decode the rest. `itl`: decode gets its part of the workers in proportion to the needs,
       rounded up, which is enough for all that prefill then lets through; the rest waits in
       line. The protected role gives up a worker where it could serve `margin` more load
       without it.

    So two moves in opposite directions mean that the proportion of the needs changed by a factor
    of more than 1 + margin in between.
    """
    if ready.total < config.min_prefill_workers + config.min_decode_workers:
        return _wanted(need, ready, ready.prefill, "too few are ready to share")
    load, need = need, _at_least(need, config)
    now, even = _pressure(need, ready), _even(need, ready, config)
    if now <= 1:
        return _wanted(need, ready, ready.prefill, "nobody is short")
    if (then := _pressure(need, even)) > 1:
        prefill = _protected(load, ready, config)
        return _wanted(need, ready, prefill, f"{config.priority_target} is protected")
    if now <= then * (1 + config.hysteresis):
        return _wanted(need, ready, ready.prefill, "a move would ease too little")
    if need.prefill > ready.prefill:
        prefill, who = _eased(need.prefill, ready.prefill, even.prefill), "prefill"
    else:
        prefill = ready.total - _eased(need.decode, ready.decode, even.decode)
        who = "decode"
    return _wanted(need, ready, _guarded(prefill, load, ready, config), f"{who} is short")


def capacity_gap(
    need: WorkerNeed, ready: ReadyWorkers, moving: int, config: Planner
) -> CapacityGap:
    """See signals.Lack."""
    load, need, here = need, _at_least(need, config), ready.total + moving
    more = ceil(need.prefill) + ceil(need.decode) - here
    keeps = _with_margin(load.prefill, config.min_prefill_workers, config)
    keeps += _with_margin(load.decode, config.min_decode_workers, config)
    role = (
        Role.prefill if need.prefill - ready.prefill > need.decode - ready.decode else Role.decode
    )
    return CapacityGap(missing=max(more, 0), spare=max(here - keeps, 0), role=role)


def _at_least(need: WorkerNeed, config: Planner) -> WorkerNeed:
    prefill = max(need.prefill, config.min_prefill_workers)
    return WorkerNeed(prefill, max(need.decode, config.min_decode_workers), need.unreachable)


def _pressure(need: WorkerNeed, ready: ReadyWorkers) -> float:
    """Of the role that has the greater one."""
    if not (ready.prefill and ready.decode):
        return inf
    return max(need.prefill / ready.prefill, need.decode / ready.decode)


def _even(need: WorkerNeed, ready: ReadyWorkers, config: Planner) -> ReadyWorkers:
    """The even split that keeps the least of each role."""
    total, fair = ready.total, floor(ready.total * need.prefill / need.total)
    most = total - config.min_decode_workers
    counts = (max(config.min_prefill_workers, min(count, most)) for count in (fair, fair + 1))
    splits = (ReadyWorkers(prefill, total - prefill) for prefill in counts)
    return min(splits, key=lambda each: _pressure(need, each))


def _eased(need: float, has: int, even: int) -> int:
    return max(ceil(need), has + ceil((even - has) / 2))


def _guarded(prefill: int, load: WorkerNeed, ready: ReadyWorkers, config: Planner) -> int:
    """So many prefill workers, but that the protected role keeps a margin of what it has."""
    if config.priority_target is PriorityTarget.ttft:
        keeps = _with_margin(load.prefill, config.min_prefill_workers, config)
        return max(prefill, min(ready.prefill, keeps))
    keeps = _with_margin(load.decode, config.min_decode_workers, config)
    return min(prefill, ready.total - min(ready.decode, keeps))


def _protected(load: WorkerNeed, ready: ReadyWorkers, config: Planner) -> int:
    """Prefill workers where not both can have what they need."""
    if config.priority_target is PriorityTarget.ttft:
        prefill = _kept(load.prefill, ready.prefill, config.min_prefill_workers, config)
    else:
        part = min(load.decode, ready.total * load.decode / max(load.total, 1.0))
        prefill = ready.total - _kept(part, ready.decode, config.min_decode_workers, config)
    return max(config.min_prefill_workers, min(prefill, ready.total - config.min_decode_workers))


def _kept(need: float, ready: int, least: int, config: Planner) -> int:
    return ceil(need) if need > ready else min(ready, _with_margin(need, least, config))


def _with_margin(need: float, least: int, config: Planner) -> int:
    return max(least, ceil(need * (1 + config.hysteresis)))


def _wanted(need: WorkerNeed, ready: ReadyWorkers, prefill: int, why: str) -> TargetSplit:
    decode = ready.total - prefill
    given_up = [need.unreachable] if need.unreachable else []
    for target, role, needs, gets in (
        ("TTFT", "prefill", need.prefill, prefill),
        ("ITL", "decode", need.decode, decode),
    ):
        if needs > gets:
            given_up.append(f"{target}: {role} needs {needs:.1f} workers and gets {gets}")
    why = f"{why}: prefill needs {need.prefill:.2f}, decode {need.decode:.2f}"
    return TargetSplit(prefill=prefill, decode=decode, reason=why, shortfall="; ".join(given_up))
