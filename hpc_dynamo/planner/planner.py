"""One decision an interval: what was seen, what is expected, what that needs, what is to move."""

from typing import Protocol

from hpc_dynamo.config import Planner as Rules
from hpc_dynamo.config import PlannerMode, Role
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner.forecast import Outlook
from hpc_dynamo.planner.load import Load
from hpc_dynamo.planner.performance import Performance
from hpc_dynamo.planner.signals import Decision, Demand, Move, Signals
from hpc_dynamo.planner.sla import Sla
from hpc_dynamo.planner.split import Need, Ready, lack, split


class Rule(Protocol):
    """What a load needs: load.Load, or sla.Sla."""

    def need(self, seen: Signals, expected: Demand) -> Need:
        """After each interval, once."""


class Planner:
    """Decides from signals alone: no clock, no I/O.

    Workers move when `patience` intervals in a row wanted the same direction (`split` says what
    is wanted), and then as few as any of these wanted; at once where a role has fewer than its
    least. While some still move, no others do: what is seen is of neither the old split nor the
    new one. A move that failed is wanted again like any other; who acts need not try at once.
    """

    def __init__(self, config: Rules, performance: Performance | None = None) -> None:
        """For a planner that is not off. Raises ConfigError where it needs a profile."""
        self._config = config
        self._outlook = Outlook(config.forecast)
        self._rule = _rule(config, performance)
        self._asked: list[int] = []  # prefill workers more, of the last intervals

    def decide(self, seen: Signals) -> Decision:
        """What to do after the interval `seen`."""
        expected, ready = self._outlook.observe(seen), Ready(seen.prefill, seen.decode)
        need = self._rule.need(seen, expected)
        wanted = split(need, ready, self._config)
        move, why = self._moved(wanted.prefill - ready.prefill, seen)
        return Decision(
            seen=seen,
            expected=expected,
            wanted=wanted,
            lack=lack(need, ready, seen.moving, self._config),
            move=move,
            why=why,
        )

    def _moved(self, more: int, seen: Signals) -> tuple[Move | None, str]:
        """What is to move where so many prefill workers more are wanted (fewer: below 0)."""
        if not more or seen.moving:
            self._asked.clear()
            return None, "a move is under way" if seen.moving else ""
        if self._asked and (self._asked[-1] > 0) != (more > 0):
            self._asked.clear()
        self._asked.append(more)
        if self._bare(seen):
            return self._move(), "a role has too few"
        if len(self._asked) < self._config.stabilization_intervals:
            return (
                None,
                f"wanted {len(self._asked)} of {self._config.stabilization_intervals} times",
            )
        return self._move(), "wanted often enough"

    def _bare(self, seen: Signals) -> bool:
        config = self._config
        return seen.prefill < config.min_prefill_workers or seen.decode < config.min_decode_workers

    def _move(self) -> Move:
        more = min(self._asked, key=abs)
        self._asked.clear()
        old, new = (Role.decode, Role.prefill) if more > 0 else (Role.prefill, Role.decode)
        return Move(count=abs(more), old=old, new=new)


def _rule(config: Rules, performance: Performance | None) -> Rule:
    if config.mode is not PlannerMode.sla:
        return Load(config)
    if performance is None:
        what = "planner.mode=sla needs a profile of the engine"
        raise ConfigError(what, hint="planner.profile=FILE, of `hpc-dynamo profile`")
    return Sla(config, performance)
