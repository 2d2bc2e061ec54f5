"""One decision per interval: observe, predict, compute the need, choose a split, move workers."""

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
    """Computes the workers that a load needs."""

    def need(self, signals: Signals, expected: ExpectedLoad) -> WorkerNeed:
        """Return the need after an interval. Called once per interval."""


class RolePlanner:
    """Decides from signals only, without clock and I/O.

    Workers move after `stabilization_intervals` intervals that wanted the same direction, as few as
    the smallest of these requests. They move at once if a role has fewer workers than its minimum.
    While workers change their role nothing else moves, because the signals fit neither split. The
    caller may delay a repeated move that failed.
    """

    def __init__(self, config: Rules, performance: WorkerPerformance | None = None) -> None:
        """`planner.mode` must not be off. Raises ConfigError if it needs a profile."""
        self._config = config
        self._forecaster = LoadForecaster(config.forecast)
        self._rule = _rule(config, performance)
        self._requested_moves = list[int]()  # change of prefill workers, last intervals

    def decide(self, signals: Signals) -> PlannerDecision:
        """Return the decision after an interval. Called once per interval."""
        expected = self._forecaster.observe(signals)
        ready = ReadyWorkers(signals.prefill, signals.decode)
        need = self._rule.need(signals, expected)
        target = target_split(need, ready, self._config)
        move, reason = self._move(target.prefill - ready.prefill, signals)
        return PlannerDecision(
            signals=signals,
            expected=expected,
            target=target,
            gap=capacity_gap(need, ready, signals.changing_role, self._config),
            move=move,
            reason=reason,
        )

    def _move(self, change: int, signals: Signals) -> tuple[RoleMove | None, str]:
        """Return the move for a wanted change of the prefill workers, and the reason."""
        if not change or signals.changing_role:
            self._requested_moves.clear()
            return None, "a role change is in progress" if signals.changing_role else ""
        if self._requested_moves and (self._requested_moves[-1] > 0) != (change > 0):
            self._requested_moves.clear()
        self._requested_moves.append(change)
        if self._below_minimum(signals):
            return self._smallest_move(), "a role has fewer workers than its minimum"
        count, required = len(self._requested_moves), self._config.stabilization_intervals
        if count < required:
            return None, f"wanted in {count} of {required} intervals"
        return self._smallest_move(), f"wanted in {required} intervals"

    def _below_minimum(self, signals: Signals) -> bool:
        prefill, decode = self._config.min_prefill_workers, self._config.min_decode_workers
        return signals.prefill < prefill or signals.decode < decode

    def _smallest_move(self) -> RoleMove:
        change = min(self._requested_moves, key=abs)
        self._requested_moves.clear()
        old, new = (Role.decode, Role.prefill) if change > 0 else (Role.prefill, Role.decode)
        return RoleMove(count=abs(change), old=old, new=new)


def _rule(config: Rules, performance: WorkerPerformance | None) -> CapacityRule:
    if config.mode is not PlannerMode.sla:
        return ThresholdRule(config)
    if performance is None:
        what = "planner.mode=sla needs a profile of the engine"
        raise ConfigError(what, hint="planner.profile=FILE, of `hpc-dynamo profile`")
    return SlaRule(config, performance)
