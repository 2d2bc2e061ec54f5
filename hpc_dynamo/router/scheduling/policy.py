"""Routing policies: pure functions that select one of the usable targets.

A policy is a row of POLICIES: a cost function, and the number of targets that are drawn at random
first. The target with the lowest cost is selected; ties go to the least recently used one. A target
is a worker, or a data-parallel rank of it.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hpc_dynamo.config import Policy
from hpc_dynamo.router.index.block_owners import TargetKey
from hpc_dynamo.router.index.hashes import rendezvous_weight
from hpc_dynamo.router.scheduling.worker import RoutingTarget


@dataclass(frozen=True, slots=True)
class CostInputs:
    """Properties of a request that its cost on a target depends on."""

    prompt_tokens: int
    overlaps: Mapping[TargetKey, int]  # cached blocks from the prompt's start
    block_tokens: int
    overlap_weight: float = 1.0
    recompute_weight: float = 1.0
    decode_weight: float = 1.0
    session: str = ""
    # Cost of the blocks that are only in lower tiers, in prompt tokens (router.tier_cost).
    load_tokens: Mapping[TargetKey, float] = field(default_factory=dict)

    def uncached_tokens(self, target: RoutingTarget) -> int:
        """Return the prompt tokens that the target must compute or pull.

        Blocks that it loads from a lower tier count with `load_tokens`.
        """
        cached = self.overlaps.get(target.key, 0) * self.block_tokens
        left = max(self.prompt_tokens - cached, 0)
        return left + round(self.load_tokens.get(target.key, 0)) if self.load_tokens else left


Cost = Callable[[RoutingTarget, CostInputs], float]


def kv_cost(target: RoutingTarget, inputs: CostInputs) -> float:
    """Return the pending work in blocks: prompt tokens to compute, and KV blocks in use.

    The terms are those of the cost function of NVIDIA Dynamo's router.
    """
    peer = target.peer_load
    own = inputs.recompute_weight * inputs.uncached_tokens(target)
    pending = (own + target.prefill_tokens + peer.prefill_tokens) / inputs.block_tokens
    blocks = target.blocks + peer.blocks
    return inputs.overlap_weight * pending + inputs.decode_weight * blocks


def active_requests(target: RoutingTarget, inputs: CostInputs) -> float:
    """Return the active requests of this head and of its peers."""
    return target.active + target.peer_load.active


def last_lease(target: RoutingTarget, inputs: CostInputs) -> float:
    """Return the number of the target's last lease.

    A count of its leases instead would send all requests to a new target until it has caught up.
    """
    return target.last_lease_id


def session_weight(target: RoutingTarget, inputs: CostInputs) -> float:
    """Return the target's rendezvous weight for the session; without a session, its load."""
    if inputs.session:
        return rendezvous_weight(inputs.session, target.key)
    return active_requests(target, inputs)


@dataclass(frozen=True)
class PolicyRule:
    """Selects `sample_size` random targets (0: all), then the one with the lowest cost."""

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


def select_target(
    rule: PolicyRule,
    targets: Sequence[RoutingTarget],
    inputs: CostInputs,
    temperature: float = 0.0,
) -> RoutingTarget:
    """Return one of the targets, of which there must be at least one."""
    if 0 < rule.sample_size < len(targets):
        targets = random.sample(targets, rule.sample_size)
    cost = rule.cost
    if temperature > 0:
        return _sample([cost(t, inputs) for t in targets], targets, temperature)
    return min(
        targets, key=lambda t: (cost(t, inputs), active_requests(t, inputs), t.last_lease_id)
    )


def _sample(
    costs: list[float], targets: Sequence[RoutingTarget], temperature: float
) -> RoutingTarget:
    """Sample by the softmax of the costs, scaled to 0 for the lowest and 1 for the highest."""
    lowest = min(costs)
    spread = max(costs) - lowest or 1.0
    weights = [math.exp((lowest - cost) / spread / temperature) for cost in costs]
    return random.choices(targets, weights)[0]
