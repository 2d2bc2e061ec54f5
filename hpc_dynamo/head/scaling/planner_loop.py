"""The planner's loop: collect signals, decide, change roles, and record all of it.

After a failed role change, its direction (from one role to the other) is not tried again for
RETRY_INTERVALS. The delay doubles with each failure in a row.
"""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from hpc_dynamo import jsonl
from hpc_dynamo.backoff import Backoff
from hpc_dynamo.config import Config, Role
from hpc_dynamo.head.scaling.role_change import RoleChanger
from hpc_dynamo.messages import PlannerStatus, WorkerLoad
from hpc_dynamo.planner.collect import collect_signals
from hpc_dynamo.planner.planner import RolePlanner
from hpc_dynamo.planner.prompt_lengths import PromptLengths
from hpc_dynamo.planner.records import PlannerRecord, RoleChange
from hpc_dynamo.planner.signals import PlannerDecision, RoleMove, Signals
from hpc_dynamo.router import RequestRouter

RETRY_INTERVALS = 10
MAX_RETRY_INTERVALS = 160

Direction = tuple[Role, Role]

log = logging.getLogger(__name__)


class PlannerLoop:
    """Runs the planner once per interval. `on_decision` receives every decision.

    `changing` are the ranks that change their role now. `role_changes` counts by old role, new
    role, and "done" or "failed".
    """

    def __init__(
        self,
        config: Config,
        router: RequestRouter,
        planner: RolePlanner,
        role_changer: RoleChanger,
        loads: Callable[[], Sequence[WorkerLoad]],
        file: Path,
        on_decision: Callable[[PlannerDecision], None] = lambda decision: None,
    ) -> None:
        self._roles = [role for role, _ in config.topology.pools]
        self._interval_s = config.planner.interval_s
        self._max_sequences = config.engine.max_num_seqs
        self._router, self._planner, self._role_changer = router, planner, role_changer
        self._loads, self._file, self._on_decision = loads, file, on_decision
        self._lengths = PromptLengths()
        self.changing = set[int]()
        self._retries = defaultdict[Direction, Backoff](self._new_backoff)
        self.role_changes = Counter[tuple[Role, Role, str]]()
        self.last: PlannerDecision | None = None

    def _new_backoff(self) -> Backoff:
        interval_s = self._interval_s
        return Backoff(RETRY_INTERVALS * interval_s, MAX_RETRY_INTERVALS * interval_s)

    async def run(self) -> None:
        """Decide once per interval until cancelled, from the moment that all roles are ready."""
        await self._router.wait_for_roles(self._roles)
        self._router.interval_stats.take()  # the time before is not an interval
        self._lengths.take(self._loads())
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._interval_s)
                signals = self._collect()
                self.last = self._planner.decide(signals)
                self._on_decision(self.last)
                ranks, skipped = self._select(self.last.move)
                await self._record(PlannerRecord(decision=self.last, skipped=skipped))
                for rank in ranks:
                    assert self.last.move
                    self.changing.add(rank)
                    change = self._change_role(rank, self.last.move)
                    group.create_task(change, name=f"role-change-{rank}")

    def _collect(self) -> Signals:
        loads, changing = self._loads(), len(self.changing)
        return collect_signals(self._router, loads, changing, self._max_sequences, self._lengths)

    def status(self) -> PlannerStatus | None:
        """Return the last decision for status and metrics; None before the first."""
        if self.last is None:
            return None
        target, results = self.last.target, Counter[str]()
        for (_, _, result), count in self.role_changes.items():
            results[result] += count
        return PlannerStatus(
            at=self.last.signals.at,
            rate_hz=self.last.expected.rate_hz,
            prefill=target.prefill,
            decode=target.decode,
            reason=target.reason,
            shortfall=target.shortfall,
            changing=tuple(sorted(self.changing)),
            role_changes=results["done"],
            failed_role_changes=results["failed"],
        )

    def _select(self, move: RoleMove | None) -> tuple[list[int], str]:
        """Return the ranks to move, and the reason if they are fewer than the move wants."""
        if move is None or move.old is None or move.new is None:
            return [], ""
        if not self._retries[move.old, move.new].allows(time.monotonic()):
            return [], f"{move.old} to {move.new} failed a while ago"
        ready = self._role_changer.ready_ranks(move.old)
        spare = max(0, len(ready) - self._role_changer.min_workers(move.old))
        ranks = ready[: min(move.count, spare)]
        return ranks, "" if len(ranks) == move.count else f"too few ready {move.old} workers"

    async def _change_role(self, rank: int, move: RoleMove) -> None:
        assert move.old
        assert move.new
        try:
            change = await self._role_changer.change_role(rank, move.old, move.new)
        finally:
            self.changing.discard(rank)
        self._count(change)
        await self._record(PlannerRecord(role_change=change))

    def _count(self, change: RoleChange) -> None:
        result, retry = "failed" if change.reason else "done", self._retries[change.old, change.new]
        message = "worker %d: %s to %s %s %s"
        log.info(message, change.rank, change.old, change.new, result, change.reason)
        self.role_changes[change.old, change.new, result] += 1
        if change.reason:
            retry.failed(time.monotonic())
        else:
            retry.succeeded()

    async def _record(self, record: PlannerRecord) -> None:
        try:
            await asyncio.to_thread(jsonl.append, self._file, record)
        except OSError as e:  # a full disk must not end an endpoint
            log.warning("planner record not written: %s", e)
