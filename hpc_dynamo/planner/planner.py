"""One decision an interval: what was seen, what is expected, what that needs, what is to move."""

from hpc_dynamo.config import Planner as Rules
from hpc_dynamo.config import PlannerKind, Role
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner import load
from hpc_dynamo.planner.forecast import Outlook
from hpc_dynamo.planner.performance import Performance
from hpc_dynamo.planner.signals import Decision, Demand, Move, Signals
from hpc_dynamo.planner.sla import Sla
from hpc_dynamo.planner.split import Need, Ready, split


class Planner:
    """Decides from signals alone: no clock, no I/O.

    The rule against flapping: `split` says how many of each role are wanted; it asks for a change
    only where a role is short, and takes a worker only from a role that could serve `margin` more
    load without it. Workers move when `patience` intervals in a row wanted the same direction, and
    then as few as any of these wanted. While workers move nothing else is decided.
    """

    def __init__(self, config: Rules, performance: Performance | None) -> None:
        """Raises ConfigError where the kind of planner needs a profile and there is none."""
        self._config = config
        self._outlook = Outlook(config.forecast)
        self._sla = None
        if config.by is PlannerKind.sla:
            if performance is None:
                what = "planner.by=sla needs a profile of the engine"
                raise ConfigError(what, hint="planner.profile=FILE, of `hpc-dynamo profile`")
            self._sla = Sla(config, performance)
        self._asked: list[int] = []  # prefill workers more, of the last intervals

    def decide(self, seen: Signals) -> Decision:
        """What to do after the interval `seen`."""
        expected = self._outlook.observe(seen)
        ready = Ready(seen.prefill, seen.decode)
        wanted = split(self._need(seen, expected), ready, self._config)
        move, why = self._moved(wanted.prefill - ready.prefill, seen.moving)
        return Decision(seen=seen, expected=expected, wanted=wanted, move=move, why=why)

    def _need(self, seen: Signals, expected: Demand) -> Need:
        return self._sla.need(seen, expected) if self._sla else load.need(self._config, seen)

    def _moved(self, more: int, moving: int) -> tuple[Move | None, str]:
        if moving or not more:
            self._asked.clear()
            return None, f"{moving} workers are moving" if moving else ""
        if self._asked and (self._asked[-1] > 0) != (more > 0):
            self._asked.clear()
        self._asked.append(more)
        if len(self._asked) < self._config.patience:
            return None, f"wanted {len(self._asked)} of {self._config.patience} times"
        count = min(self._asked, key=abs)
        self._asked.clear()
        old, new = (Role.decode, Role.prefill) if more > 0 else (Role.prefill, Role.decode)
        return Move(count=abs(count), old=old, new=new), ""
