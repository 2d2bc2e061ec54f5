"""Who gets the workers: from what each role needs to how many of each there are to be."""

from math import ceil
from typing import NamedTuple

from hpc_dynamo.config import Planner, Protect, Role
from hpc_dynamo.planner.signals import Lack, Wanted


class Need(NamedTuple):
    """Workers of each role that a load needs, with fractions. `lost` names a target that no
    number of workers would meet."""

    prefill: float
    decode: float
    lost: str = ""

    @property
    def total(self) -> float:
        return self.prefill + self.decode


class Ready(NamedTuple):
    """Workers that there are."""

    prefill: int
    decode: int

    @property
    def total(self) -> int:
        return self.prefill + self.decode


def split(need: Need, ready: Ready, config: Planner) -> Wanted:
    """The wanted split of the workers that are ready. Their sum stays.

    1. While no role needs more workers than it has, nothing changes.
    2. The role that is short gets what it needs, rounded up, where the other can spare it: it
       could serve `margin` more load with what is left to it. What neither needs is shared in
       proportion to the needs, so that both have the same room for a swing.
    3. Where that cannot be, `protect` decides. `ttft`: prefill gets its need, decode the rest.
       `itl`: decode gets its part of the workers in proportion to the needs, rounded up, which
       is enough for all that prefill then lets through; the rest waits in line. The protected
       role gives up a worker where it could serve `margin` more load without it.

    So two moves in opposite directions mean that a need, or the proportion of the needs, changed
    by a factor of more than 1 + margin in between.
    """
    if ready.total < config.least_prefill + config.least_decode:
        return _wanted(need, ready, ready.prefill, "too few are ready to share")
    load, need = need, _at_least(need, config)
    if need.prefill <= ready.prefill and need.decode <= ready.decode:
        return _wanted(need, ready, ready.prefill, "nobody is short")
    prefill_keeps = _with_margin(load.prefill, config.least_prefill, config)
    decode_keeps = _with_margin(load.decode, config.least_decode, config)
    fair = ready.total * need.prefill / need.total
    if need.decode <= ready.decode and ceil(need.prefill) + decode_keeps <= ready.total:
        most = max(ready.total - decode_keeps, ready.prefill)
        return _wanted(need, ready, _within(ceil(need.prefill), fair, most), "prefill is short")
    if need.prefill <= ready.prefill and ceil(need.decode) + prefill_keeps <= ready.total:
        least = min(prefill_keeps, ready.prefill)
        most = ready.total - ceil(need.decode)
        return _wanted(need, ready, _within(least, fair, most), "decode is short")
    return _wanted(need, ready, _protected(load, ready, config), f"{config.protect} is protected")


def lack(need: Need, ready: Ready, moving: int, config: Planner) -> Lack:
    """See signals.Lack."""
    load, need, here = need, _at_least(need, config), ready.total + moving
    more = ceil(need.prefill) + ceil(need.decode) - here
    keeps = _with_margin(load.prefill, config.least_prefill, config)
    keeps += _with_margin(load.decode, config.least_decode, config)
    role = (
        Role.prefill if need.prefill - ready.prefill > need.decode - ready.decode else Role.decode
    )
    return Lack(more=max(more, 0), spare=max(here - keeps, 0), role=role)


def _at_least(need: Need, config: Planner) -> Need:
    prefill = max(need.prefill, config.least_prefill)
    return Need(prefill, max(need.decode, config.least_decode), need.lost)


def _within(least: int, value: float, most: int) -> int:
    return max(least, min(round(value), most))


def _protected(load: Need, ready: Ready, config: Planner) -> int:
    """Prefill workers where not both can have what they need."""
    if config.protect is Protect.ttft:
        prefill = _kept(load.prefill, ready.prefill, config.least_prefill, config)
    else:
        part = min(load.decode, ready.total * load.decode / max(load.total, 1.0))
        prefill = ready.total - _kept(part, ready.decode, config.least_decode, config)
    return max(config.least_prefill, min(prefill, ready.total - config.least_decode))


def _kept(need: float, ready: int, least: int, config: Planner) -> int:
    return ceil(need) if need > ready else min(ready, _with_margin(need, least, config))


def _with_margin(need: float, least: int, config: Planner) -> int:
    return max(least, ceil(need * (1 + config.margin)))


def _wanted(need: Need, ready: Ready, prefill: int, why: str) -> Wanted:
    decode = ready.total - prefill
    given_up = [need.lost] if need.lost else []
    for target, role, needs, gets in (
        ("TTFT", "prefill", need.prefill, prefill),
        ("ITL", "decode", need.decode, decode),
    ):
        if needs > gets:
            given_up.append(f"{target}: {role} needs {needs:.1f} workers and gets {gets}")
    why = f"{why}: prefill needs {need.prefill:.2f}, decode {need.decode:.2f}"
    return Wanted(prefill=prefill, decode=decode, why=why, short="; ".join(given_up))
