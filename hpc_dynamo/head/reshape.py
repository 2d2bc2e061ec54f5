"""The planner's loop: look, decide, change roles, and keep a record of each interval.

A direction (from one role to the other) in which a flip failed is not tried again for
RETRY_INTERVALS, twice as many after each further failure; a flip that succeeds ends that.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from hpc_dynamo.config import Config, Role
from hpc_dynamo.head.flip import Flip, Flipper
from hpc_dynamo.messages import WorkerLoad
from hpc_dynamo.planner.signals import Decision, Move, Signals
from hpc_dynamo.router import Router

RETRY_INTERVALS = 10
MOST_INTERVALS = 160

log = logging.getLogger(__name__)


class Decides(Protocol):
    """See planner.Planner."""

    def decide(self, seen: Signals) -> Decision: ...


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A line of planner.jsonl: one interval, and what came of its decision."""

    decision: Decision
    flips: tuple[Flip, ...] = ()
    left_out: str = ""  # why a move was not made, or not wholly
    seconds: float = 0.0  # that it took


def look(router: Router, loads: tuple[WorkerLoad, ...]) -> Signals:
    """The interval that ends now."""
    seen, traffic = router.meter.take(), router.traffic()
    by_role = {role: [m for m in router.members if m.role is role] for role in Role}
    decode = {m.rank for m in by_role[Role.decode]}
    said = [load for load in loads if load.rank in decode]
    prefill = by_role[Role.prefill]
    return Signals(
        at=time.time(),
        seconds=seen.seconds,
        requests=seen.requests,
        prompt_tokens=seen.prompt_tokens.value,
        answer_tokens=seen.answer_tokens.value,
        hit_rate=seen.hit_rate,
        ttft_s=seen.ttft_s.value,
        itl_s=seen.itl_s.value,
        queued=traffic.queued,
        active=traffic.active,
        prefill=len(prefill),
        decode=len(decode),
        ahead_tokens=_mean([m.prefill_tokens for m in prefill]),
        running=_mean([load.running for load in said]),
        waiting=_mean([load.waiting for load in said]),
        kv_usage=_mean([load.kv_usage for load in said]),
    )


def _mean(values: "list[int] | list[float]") -> float:
    return sum(values) / len(values) if values else 0.0


class Reshaper:
    """Until cancelled. `flips` counts by (old role, new role, done or failed)."""

    def __init__(
        self,
        config: Config,
        router: Router,
        planner: Decides,
        flipper: Flipper,
        loads: Callable[[], tuple[WorkerLoad, ...]],
        file: Path,
    ) -> None:
        self._interval_s = config.planner.interval_s
        self._router, self._planner, self._flipper = router, planner, flipper
        self._loads, self._file = loads, file
        self._not_before = dict[tuple[Role, Role], float]()
        self._failures = Counter[tuple[Role, Role]]()
        self.flips = Counter[tuple[str, str, str]]()
        self.last: Decision | None = None

    async def run(self) -> None:
        self._router.meter.take()  # what came before is no interval
        while True:
            await asyncio.sleep(self._interval_s)
            record = await self._act(self._planner.decide(look(self._router, self._loads())))
            await asyncio.to_thread(append, self._file, record)

    async def _act(self, decision: Decision) -> Record:
        self.last, began = decision, time.monotonic()
        ranks, left_out = self._who(decision.move)
        flips = await self._all(decision.move, ranks) if decision.move and ranks else ()
        seconds = time.monotonic() - began
        return Record(decision=decision, flips=flips, left_out=left_out, seconds=seconds)

    def _who(self, move: Move | None) -> tuple[list[int], str]:
        """Ranks that may make a move, and why they are fewer than it wants."""
        if move is None:
            return [], ""
        if move.old is None or move.new is None:
            return [], "the allocation does not change"
        if time.monotonic() < self._not_before.get((move.old, move.new), 0.0):
            return [], "it failed a while ago"
        ready = self._flipper.ready(move.old)
        ranks = ready[: max(0, min(move.count, len(ready) - self._flipper.least(move.old)))]
        return ranks, "" if len(ranks) == move.count else f"too few ready {move.old} workers"

    async def _all(self, move: Move, ranks: list[int]) -> tuple[Flip, ...]:
        assert move.old
        assert move.new
        old, new = move.old, move.new
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._flipper.flip(rank, old, new)) for rank in ranks]
        flips = tuple(task.result() for task in tasks)
        for flip in flips:
            self._learn(flip)
        return flips

    def _learn(self, flip: Flip) -> None:
        how, direction = "failed" if flip.why else "done", (flip.old, flip.new)
        log.info("worker %d: %s to %s %s %s", flip.rank, flip.old, flip.new, how, flip.why)
        self.flips[str(flip.old), str(flip.new), how] += 1
        if not flip.why:
            self._failures[direction] = 0
            return
        waits = min(RETRY_INTERVALS * 2 ** self._failures[direction], MOST_INTERVALS)
        self._failures[direction] += 1
        self._not_before[direction] = time.monotonic() + waits * self._interval_s


def append(file: Path, record: Record) -> None:
    """A whole line, on disk when this returns."""
    with file.open("ab") as out:
        out.write(msgspec.json.encode(record) + b"\n")
        out.flush()
        os.fsync(out.fileno())
