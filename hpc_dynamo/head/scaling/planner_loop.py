"""The planner's loop: look, decide, change roles, and keep a record of all that.

A direction (from one role to the other) in which a flip failed is not tried again for
RETRY_INTERVALS, twice as many after each further failure; a flip that succeeds ends that.
"""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from hpc_dynamo import jsonl
from hpc_dynamo.backoff import Backoff
from hpc_dynamo.config import Config, Role
from hpc_dynamo.head.scaling.role_change import RoleChanger
from hpc_dynamo.messages import PlannerStatus, WorkerLoad
from hpc_dynamo.planner.collect import collect_signals
from hpc_dynamo.planner.prompt_lengths import PromptLengths
from hpc_dynamo.planner.records import PlannerRecord, RoleChange
from hpc_dynamo.planner.signals import PlannerDecision, RoleMove, Signals
from hpc_dynamo.router import Router

RETRY_INTERVALS = 10
MOST_INTERVALS = 160

Direction = tuple[Role, Role]

log = logging.getLogger(__name__)


class DecisionPolicy(Protocol):
    """See planner.Planner."""

    def decide(self, seen: Signals) -> PlannerDecision: ...


class PlannerLoop:
    """Runs until cancelled; `heed` is told of every decision.

    `flips` counts by old role, new role, and done or failed.
    """

    def __init__(
        self,
        config: Config,
        router: Router,
        planner: DecisionPolicy,
        flipper: RoleChanger,
        loads: Callable[[], Sequence[WorkerLoad]],
        file: Path,
        heed: Callable[[PlannerDecision], None] = lambda decision: None,
    ) -> None:
        self._roles = [role for role, _ in config.topology.pools]
        self._interval_s = config.planner.interval_s
        self._most = config.engine.max_num_seqs
        self._router, self._planner, self._flipper = router, planner, flipper
        self._loads, self._file, self._heed = loads, file, heed
        self._lengths = PromptLengths()
        self.moving = set[int]()  # ranks
        self._retries = defaultdict[Direction, Backoff](self._backoff)
        self.role_changes = Counter[tuple[Role, Role, str]]()
        self.last: PlannerDecision | None = None

    async def run(self) -> None:
        await self._router.wait_for_roles(self._roles)
        self._router.interval_stats.take()  # what came before is no interval
        self._lengths.take(self._loads())
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._interval_s)
                seen = self._see()
                # A forecast may have to fit a model: streams must not wait for that.
                self.last = await asyncio.to_thread(self._planner.decide, seen)
                self._heed(self.last)
                ranks, left_out = self._who(self.last.move)
                await self._keep(PlannerRecord(decision=self.last, skipped=left_out))
                for rank in ranks:
                    assert self.last.move
                    self.moving.add(rank)
                    group.create_task(self._flip(rank, self.last.move), name=f"flip-{rank}")

    def _see(self) -> Signals:
        changing = len(self.moving)
        return collect_signals(self._router, self._loads(), changing, self._most, self._lengths)

    def _backoff(self) -> Backoff:
        return Backoff(RETRY_INTERVALS * self._interval_s, MOST_INTERVALS * self._interval_s)

    def status(self) -> PlannerStatus | None:
        """None before the first decision."""
        if self.last is None:
            return None
        wanted, done = self.last.target, Counter[str]()
        for (_, _, how), count in self.role_changes.items():
            done[how] += count
        return PlannerStatus(
            at=self.last.signals.at,
            rate_hz=self.last.expected.rate_hz,
            prefill=wanted.prefill,
            decode=wanted.decode,
            reason=wanted.reason,
            shortfall=wanted.shortfall,
            changing=tuple(sorted(self.moving)),
            role_changes=done["done"],
            failed_role_changes=done["failed"],
        )

    def _who(self, move: RoleMove | None) -> tuple[list[int], str]:
        """Ranks that may make a move, and why they are fewer than it wants."""
        if move is None or move.old is None or move.new is None:
            return [], ""
        if not self._retries[move.old, move.new].allows(time.monotonic()):
            return [], f"{move.old} to {move.new} failed a while ago"
        ready = self._flipper.ready_ranks(move.old)
        spare = max(0, len(ready) - self._flipper.min_workers(move.old))
        ranks = ready[: min(move.count, spare)]
        return ranks, "" if len(ranks) == move.count else f"too few ready {move.old} workers"

    async def _flip(self, rank: int, move: RoleMove) -> None:
        assert move.old
        assert move.new
        try:
            flip = await self._flipper.change_role(rank, move.old, move.new)
        finally:
            self.moving.discard(rank)
        self._learn(flip)
        await self._keep(PlannerRecord(role_change=flip))

    def _learn(self, flip: RoleChange) -> None:
        how, direction = "failed" if flip.reason else "done", (flip.old, flip.new)
        log.info("worker %d: %s to %s %s %s", flip.rank, flip.old, flip.new, how, flip.reason)
        self.role_changes[flip.old, flip.new, how] += 1
        if not flip.reason:
            self._retries[direction].succeeded()
            return
        self._retries[direction].failed(time.monotonic())

    async def _keep(self, record: PlannerRecord) -> None:
        try:
            await asyncio.to_thread(jsonl.append, self._file, record)
        except OSError as e:  # a full disk must not end an endpoint
            log.warning("no record of the planner's: %s", e)
