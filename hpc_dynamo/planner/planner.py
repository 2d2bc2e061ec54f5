"""One decision an interval: what was seen, what is expected, what that needs, what is to move."""

from typing import Protocol

from hpc_dynamo.config import Planner as Rules
from hpc_dynamo.config import PlannerMode, Role
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner.forecast import LoadForecaster
from hpc_dynamo.planner.performance import WorkerPerformance
from hpc_dynamo.planner.signals import ExpectedLoad, PlannerDecision, RoleMove, Signals
from hpc_dynamo.planner.sla_rule import SlaRule
from hpc_dynamo.planner.target_split import ReadyWorkers, WorkerNeed, capacity_gap, target_split
from hpc_dynamo.planner.threshold_rule import ThresholdRule


class CapacityRule(Protocol):
    """What a load needs: load.Load, or sla.Sla."""

    def need(self, seen: Signals, expected: ExpectedLoad) -> WorkerNeed:
        """After each interval, once."""


class Planner:
    """Decides from signals alone: no clock, no I/O.

    Workers move when `patience` intervals in a row wanted the same direction (`split` says what
    is wanted), and then as few as any of these wanted; at once where a role has fewer than its
    least. While some still move, no others do: what is seen is of neither the old split nor the
    new one. A move that failed is wanted again like any other; who acts need not try at once.
    """

    def __init__(self, config: Rules, performance: WorkerPerformance | None = None) -> None:
        """For a planner that is not off. Raises ConfigError where it needs a profile."""
        self._config = config
        self._forecaster = LoadForecaster(config.forecast)
        self._rule = _rule(config, performance)
        self._requested_moves: list[int] = []  # prefill workers more, of the last intervals

    def decide(self, seen: Signals) -> PlannerDecision:
        """What to do after the interval `seen`."""
        expected, ready = self._forecaster.observe(seen), ReadyWorkers(seen.prefill, seen.decode)
        need = self._rule.need(seen, expected)
        wanted = target_split(need, ready, self._config)
        move, why = self._moved(wanted.prefill - ready.prefill, seen)
        return PlannerDecision(
            signals=seen,
            expected=expected,
            target=wanted,
            gap=capacity_gap(need, ready, seen.changing_role, self._config),
            move=move,
            reason=why,
        )

    def _moved(self, more: int, seen: Signals) -> tuple[RoleMove | None, str]:
        """What is to move where so many prefill workers more are wanted (fewer: below 0)."""
        if not more or seen.changing_role:
            self._requested_moves.clear()
            return None, "a move is under way" if seen.changing_role else ""
        if self._requested_moves and (self._requested_moves[-1] > 0) != (more > 0):
            self._requested_moves.clear()
        self._requested_moves.append(more)
        if self._below_minimum(seen):
            return self._move(), "a role has too few"
        count, required = len(self._requested_moves), self._config.stabilization_intervals
        if count < required:
            return None, f"wanted {count} of {required} times"
        return self._move(), "wanted often enough"

    def _below_minimum(self, seen: Signals) -> bool:
        config = self._config
        return seen.prefill < config.min_prefill_workers or seen.decode < config.min_decode_workers

    def _move(self) -> RoleMove:
        more = min(self._requested_moves, key=abs)
        self._requested_moves.clear()
        old, new = (Role.decode, Role.prefill) if more > 0 else (Role.prefill, Role.decode)
        return RoleMove(count=abs(more), old=old, new=new)


def _rule(config: Rules, performance: WorkerPerformance | None) -> CapacityRule:
    if config.mode is not PlannerMode.sla:
        return ThresholdRule(config)
    if performance is None:
        what = "planner.mode=sla needs a profile of the engine"
        raise ConfigError(what, hint="planner.profile=FILE, of `hpc-dynamo profile`")
    return SlaRule(config, performance)
