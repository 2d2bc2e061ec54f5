"""Pure choice among usable workers.

A policy is a row of POLICIES: how many workers it draws by chance before it looks, and what a
worker costs it. The cheapest gets the request; equals take turns.
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
    """What a choice depends on, besides the workers."""

    prompt_tokens: int  # of the prompt
    overlaps: Mapping[int, int]  # blocks of the prompt's start, by rank
    block_tokens: int  # tokens
    overlap_weight: float = 1.0
    recompute_weight: float = 1.0
    decode_weight: float = 1.0
    session: str = ""

    def uncached_tokens(self, m: RoutedWorker) -> int:
        """Tokens of the prompt that are not there yet: to compute, or to pull."""
        return max(self.prompt_tokens - self.overlaps.get(m.rank, 0) * self.block_tokens, 0)


Cost = Callable[[RoutedWorker, CostInputs], float]


def kv_cost(m: RoutedWorker, need: CostInputs) -> float:
    """The work ahead, in blocks: prompt tokens to compute (or to pull), here and promised, and
    blocks held for answers (the terms of NVIDIA Dynamo's router cost, docs/router)."""
    others = m.peer_load
    own = need.recompute_weight * need.uncached_tokens(m)
    ahead = (own + m.prefill_tokens + others.prefill_tokens) / need.block_tokens
    return need.overlap_weight * ahead + need.decode_weight * (m.blocks + others.blocks)


def active_requests(m: RoutedWorker, need: CostInputs) -> float:
    """Requests on it, ours and those of other heads."""
    return m.active + m.peer_load.active


def last_lease(m: RoutedWorker, need: CostInputs) -> float:
    """How lately it had its last turn; counting turns instead would send a worker that joins
    late everything until it has caught up."""
    return m.last_lease_id


def session_weight(m: RoutedWorker, need: CostInputs) -> float:
    """Return the weight of a worker for the request's session, see `hashes.rendezvous`. A request
    without a session is routed by load."""
    return rendezvous_weight(need.session, m.rank) if need.session else active_requests(m, need)


@dataclass(frozen=True)
class PolicyRule:
    cost: Cost
    sample_size: int = 0  # workers drawn by chance beforehand; 0: all of them


POLICIES: dict[Policy, PolicyRule] = {
    Policy.kv: PolicyRule(kv_cost),
    Policy.least_loaded: PolicyRule(active_requests),
    Policy.round_robin: PolicyRule(last_lease),
    Policy.random: PolicyRule(last_lease, sample_size=1),
    Policy.power_of_two: PolicyRule(active_requests, sample_size=2),
    Policy.session: PolicyRule(session_weight),
    Policy.direct: PolicyRule(active_requests),  # among those that the request names
}


def select_worker(
    rule: PolicyRule, members: Sequence[RoutedWorker], need: CostInputs, temperature: float = 0.0
) -> RoutedWorker:
    """The member for a request, of at least one."""
    if 0 < rule.sample_size < len(members):
        members = random.sample(members, rule.sample_size)
    cost = rule.cost
    if temperature > 0:
        return _by_chance([cost(m, need) for m in members], members, temperature)
    return min(members, key=lambda m: (cost(m, need), active_requests(m, need), m.last_lease_id))


def _by_chance(
    costs: list[float], members: Sequence[RoutedWorker], temperature: float
) -> RoutedWorker:
    """Softmax of the costs, scaled to 0 for the least and 1 for the most."""
    least = min(costs)
    spread = max(costs) - least or 1.0
    weights = [math.exp((least - cost) / spread / temperature) for cost in costs]
    return random.choices(members, weights)[0]
