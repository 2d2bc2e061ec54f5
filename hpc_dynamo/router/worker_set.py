"""The ready workers of a router, with the KV blocks and the peer load of each of their targets."""

import time
from collections.abc import Callable, Iterator

from hpc_dynamo.config import Role
from hpc_dynamo.messages import PrefixCaches
from hpc_dynamo.router.index.kv_state import KvState
from hpc_dynamo.router.scheduling.peer_loads import LoadByAddress, PeerLoads
from hpc_dynamo.router.scheduling.worker import RoutedWorker, RoutingTarget


class WorkerSet:
    """Workers by rank. `kv_state` has exactly their targets."""

    def __init__(self, kv_state: KvState, clock: Callable[[], float] = time.monotonic) -> None:
        self._kv_state, self._clock = kv_state, clock
        self.by_rank, self._departed = dict[int, RoutedWorker](), dict[int, RoutedWorker]()
        self._peer_loads = PeerLoads()

    @property
    def targets(self) -> Iterator[RoutingTarget]:
        return (target for worker in self.by_rank.values() for target in worker.targets)

    def add(self, rank: int, role: Role, url: str, caches: PrefixCaches) -> RoutedWorker:
        """Add a worker whose caches are empty; its rank must be free."""
        busy_s = earlier.busy_s if (earlier := self._departed.pop(rank, None)) else 0.0
        ranks = caches.count if caches.steered else 1
        worker = RoutedWorker(rank, role, url, busy_s=busy_s, clock=self._clock, ranks=ranks)
        self.by_rank[rank] = worker
        for target in worker.targets:
            target.peer_load = self._peer_loads.total(target.address)
            self._kv_state.add_worker(target.key, caches.count // ranks)
        return worker

    def remove(self, rank: int) -> RoutedWorker | None:
        """Remove a worker and its blocks; return None if it is unknown."""
        worker = self.by_rank.pop(rank, None)
        if worker:
            self._departed[rank] = worker
            for target in worker.targets:
                self._kv_state.remove_worker(target.key)
        return worker

    def forget_blocks(self, rank: int) -> None:
        """Drop all known KV blocks of a worker whose engine has dropped them."""
        if worker := self.by_rank.get(rank):
            for target in worker.targets:
                self._kv_state.forget(target.key)

    def set_peer_load(self, head: str, loads: LoadByAddress) -> None:
        """Replace the load that another head has placed on these workers; {} if it is gone."""
        self._peer_loads.set(head, loads)
        for target in self.targets:
            target.peer_load = self._peer_loads.total(target.address)
