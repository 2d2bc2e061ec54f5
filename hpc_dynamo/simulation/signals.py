"""What the planner sees of an interval, gathered from requests and workers."""

import asyncio
from collections.abc import Mapping, Sequence

from hpc_dynamo.config import Role
from hpc_dynamo.planner.signals import Signals
from hpc_dynamo.router import Member, Router
from hpc_dynamo.simulation.load import Request
from hpc_dynamo.simulation.outcome import Seen, mean
from hpc_dynamo.simulation.pool import Pool
from hpc_dynamo.simulation.worker import Worker


class Watch:
    """Counts from one `look` to the next."""

    def __init__(self, router: Router, workers: Mapping[int, Worker], pool: Pool) -> None:
        self._router, self._workers, self._pool = router, workers, pool
        self._came, self._ended = list[Request](), list[Seen]()
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()

    def came(self, request: Request) -> None:
        self._came.append(request)

    def ended(self, seen: Seen) -> None:
        if not seen.lost:
            self._ended.append(seen)

    def look(self) -> Signals:
        """The interval since the last look."""
        now, traffic = self._loop.time(), self._router.traffic()
        came, ended = self._came, self._ended
        prefill, decode = self._pool.of(Role.prefill), self._pool.of(Role.decode)
        engines = [self._workers[m.rank] for m in decode]
        signals = Signals(
            at=now,
            seconds=now - self._since,
            requests=len(came),
            prompt_tokens=_mean([r.prompt for r in came]),
            answer_tokens=_mean([s.answer for s in ended]),
            hit_rate=sum(s.cached for s in ended) / max(1, sum(s.prompt for s in ended)),
            ttft_s=_mean([s.ttft_s for s in ended]),
            itl_s=_mean([s.itl_s for s in ended if s.answer > 1]),
            queued=traffic.queued,
            active=traffic.active,
            prefill=len(prefill),
            decode=len(decode),
            ahead_tokens=_ahead(prefill),
            running=_mean([w.running for w in engines]),
            waiting=_mean([w.waiting for w in engines]),
            kv_usage=_mean([w.cache.usage for w in engines]),
        )
        self._since, self._came, self._ended = now, [], []
        return signals


def _ahead(prefill: Sequence[Member]) -> float:
    return _mean([m.ahead_tokens for m in prefill])


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else 0.0
