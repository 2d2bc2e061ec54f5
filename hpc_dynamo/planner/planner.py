"""One decision an interval: what was seen, what is expected, what that needs, what is to move."""

from hpc_dynamo.config import Planner as Rules
from hpc_dynamo.config import PlannerKind, Role
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner import load
from hpc_dynamo.planner.forecast import Outlook
from hpc_dynamo.planner.performance import Performance
from hpc_dynamo.planner.signals import Decision, Demand, Move, Signals
from hpc_dynamo.planner.sla import Sla
from hpc_dynamo.planner.split import Need, Ready, lack, split


class Planner:
    """Decides from signals alone: no clock, no I/O. `total` workers are the allocation's.

    The rule: `split` says how many of each role are wanted; it asks for a change only where a
    role is short, and takes a worker only from a role that could serve `margin` more load without
    it. Workers move when `patience` intervals in a row wanted the same direction, and then as few
    as any of these wanted. After a move nothing else moves until all workers are ready again, or
    `drain_s` and an engine's start have passed.
    """

    def __init__(self, config: Rules, performance: Performance | None, total: int) -> None:
        """Raises ConfigError where the kind of planner needs a profile and there is none."""
        if config.by is PlannerKind.sla and performance is None:
            raise ConfigError("planner.by=sla needs a profile", hint="planner.profile=FILE")
        self._config = config
        self._outlook = Outlook(config.forecast)
        sla = config.by is PlannerKind.sla
        self._sla = Sla(config, performance) if sla and performance else None
        self._start_s = performance.start_s if performance else 0.0
        self._total = total
        self._asked: list[int] = []  # prefill workers more, of the last intervals
        self._busy_until = float("-inf")

    def decide(self, seen: Signals) -> Decision:
        """What to do after the interval `seen`."""
        expected = self._outlook.observe(seen)
        ready = Ready(seen.prefill, seen.decode)
        need = self._need(seen, expected)
        wanted = split(need, ready, self._config)
        lacks = lack(need, ready, seen.moving, self._config)
        more = wanted.prefill - ready.prefill
        move, why = self._moved(more, seen, ready)
        return Decision(seen=seen, expected=expected, wanted=wanted, lack=lacks, move=move, why=why)

    def _need(self, seen: Signals, expected: Demand) -> Need:
        if self._sla:
            return self._sla.need(seen, expected)
        if self._config.by is PlannerKind.load:
            return load.need(self._config, seen)
        return Need(0.0, 0.0)

    def _moved(self, more: int, seen: Signals, ready: Ready) -> tuple[Move | None, str]:
        if ready.total >= self._total:
            self._busy_until = float("-inf")
        if seen.at < self._busy_until:
            self._asked.clear()
            return None, "a move is under way"
        if not more:
            self._asked.clear()
            return None, ""
        if self._asked and (self._asked[-1] > 0) != (more > 0):
            self._asked.clear()
        self._asked.append(more)
        if len(self._asked) < self._config.patience:
            return None, f"wanted {len(self._asked)} of {self._config.patience} times"
        return self._move(seen), "wanted often enough"

    def _move(self, seen: Signals) -> Move:
        more = min(self._asked, key=abs)
        self._asked.clear()
        self._busy_until = seen.at + self._config.drain_s + self._start_s
        old, new = (Role.decode, Role.prefill) if more > 0 else (Role.prefill, Role.decode)
        return Move(count=abs(more), old=old, new=new)
