"""Routing policies: pure functions that select one of the usable workers.

A policy is a row of POLICIES: a cost function, and the number of workers that are drawn at random
first. The worker with the lowest cost is selected; ties go to the least recently used one.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hpc_dynamo.config import Policy
from hpc_dynamo.router.index.hashes import rendezvous_weight
from hpc_dynamo.router.scheduling.worker import RoutedWorker


@dataclass(frozen=True, slots=True)
class CostInputs:
    """Properties of a request that its cost on a worker depends on."""

    prompt_tokens: int
    overlaps: Mapping[int, int]  # rank -> cached blocks from the prompt's start
    block_tokens: int
    overlap_weight: float = 1.0
    recompute_weight: float = 1.0
    decode_weight: float = 1.0
    session: str = ""

    def uncached_tokens(self, worker: RoutedWorker) -> int:
        """Return the prompt tokens that the worker must compute or pull."""
        cached = self.overlaps.get(worker.rank, 0) * self.block_tokens
        return max(self.prompt_tokens - cached, 0)


Cost = Callable[[RoutedWorker, CostInputs], float]


def kv_cost(worker: RoutedWorker, inputs: CostInputs) -> float:
    """Return the pending work in blocks: prompt tokens to compute, and KV blocks in use.

    The terms are those of the cost function of NVIDIA Dynamo's router.
    """
    peer = worker.peer_load
    own = inputs.recompute_weight * inputs.uncached_tokens(worker)
    pending = (own + worker.prefill_tokens + peer.prefill_tokens) / inputs.block_tokens
    blocks = worker.blocks + peer.blocks
    return inputs.overlap_weight * pending + inputs.decode_weight * blocks


def active_requests(worker: RoutedWorker, inputs: CostInputs) -> float:
    """Return the active requests of this head and of its peers."""
    return worker.active + worker.peer_load.active


def last_lease(worker: RoutedWorker, inputs: CostInputs) -> float:
    """Return the number of the worker's last lease.

    A count of its leases instead would send all requests to a new worker until it has caught up.
    """
    return worker.last_lease_id


def session_weight(worker: RoutedWorker, inputs: CostInputs) -> float:
    """Return the worker's rendezvous weight for the session; without a session, its load."""
    if inputs.session:
        return rendezvous_weight(inputs.session, worker.rank)
    return active_requests(worker, inputs)


@dataclass(frozen=True)
class PolicyRule:
    """Selects `sample_size` random workers (0: all), then the one with the lowest cost."""

    cost: Cost
    sample_size: int = 0


POLICIES: dict[Policy, PolicyRule] = {
    Policy.kv: PolicyRule(kv_cost),
    Policy.least_loaded: PolicyRule(active_requests),
    Policy.round_robin: PolicyRule(last_lease),
    Policy.random: PolicyRule(last_lease, sample_size=1),
    Policy.power_of_two: PolicyRule(active_requests, sample_size=2),
    Policy.session: PolicyRule(session_weight),
    Policy.direct: PolicyRule(active_requests),  # among the workers that the request names
}


def select_worker(
    rule: PolicyRule,
    workers: Sequence[RoutedWorker],
    inputs: CostInputs,
    temperature: float = 0.0,
) -> RoutedWorker:
    """Return one of the workers, of which there must be at least one."""
    if 0 < rule.sample_size < len(workers):
        workers = random.sample(workers, rule.sample_size)
    cost = rule.cost
    if temperature > 0:
        return _sample([cost(w, inputs) for w in workers], workers, temperature)
    return min(
        workers, key=lambda w: (cost(w, inputs), active_requests(w, inputs), w.last_lease_id)
    )


def _sample(
    costs: list[float], workers: Sequence[RoutedWorker], temperature: float
) -> RoutedWorker:
    """Sample by the softmax of the costs, scaled to 0 for the lowest and 1 for the highest."""
    lowest = min(costs)
    spread = max(costs) - lowest or 1.0
    weights = [math.exp((lowest - cost) / spread / temperature) for cost in costs]
    return random.choices(workers, weights)[0]
