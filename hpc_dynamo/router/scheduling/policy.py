"""Pure choice among usable workers.

A policy is a row of POLICIES: how many workers it draws by chance before it looks, and what a
worker costs it. The cheapest gets the request; equals take turns.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hpc_dynamo.config import Policy
from hpc_dynamo.router.index.hashes import rendezvous
from hpc_dynamo.router.scheduling.worker import Member


@dataclass(frozen=True, slots=True)
class Need:
    """What a choice depends on, besides the workers."""

    tokens: int  # of the prompt
    overlaps: Mapping[int, int]  # blocks of the prompt's start, by rank
    block: int  # tokens
    overlap_weight: float = 1.0
    recompute_weight: float = 1.0
    decode_weight: float = 1.0
    session: str = ""

    def left(self, m: Member) -> int:
        """Tokens of the prompt that are not there yet: to compute, or to pull."""
        return max(self.tokens - self.overlaps.get(m.rank, 0) * self.block, 0)


Cost = Callable[[Member, Need], float]


def kv(m: Member, need: Need) -> float:
    """The work ahead, in blocks: prompt tokens to compute (or to pull), here and promised, and
    blocks held for answers (the terms of NVIDIA Dynamo's router cost, docs/router)."""
    others = m.others
    own = need.recompute_weight * need.left(m)
    ahead = (own + m.prefill_tokens + others.prefill_tokens) / need.block
    return need.overlap_weight * ahead + need.decode_weight * (m.blocks + others.blocks)


def active(m: Member, need: Need) -> float:
    """Requests on it, ours and those of other heads."""
    return m.active + m.others.active


def turn(m: Member, need: Need) -> float:
    """How lately it had its last turn; counting turns instead would send a worker that joins
    late everything until it has caught up."""
    return m.turn


def affinity(m: Member, need: Need) -> float:
    """Return the weight of a worker for the request's session, see `hashes.rendezvous`. A request
    without a session is routed by load."""
    return rendezvous(need.session, m.rank) if need.session else active(m, need)


@dataclass(frozen=True)
class Rule:
    cost: Cost
    drawn: int = 0  # workers drawn by chance beforehand; 0: all of them


POLICIES: dict[Policy, Rule] = {
    Policy.kv: Rule(kv),
    Policy.least_loaded: Rule(active),
    Policy.round_robin: Rule(turn),
    Policy.random: Rule(turn, drawn=1),
    Policy.power_of_two: Rule(active, drawn=2),
    Policy.session: Rule(affinity),
    Policy.direct: Rule(active),  # among those that the request names
}


def choose(rule: Rule, members: Sequence[Member], need: Need, temperature: float = 0.0) -> Member:
    """The member for a request, of at least one."""
    if 0 < rule.drawn < len(members):
        members = random.sample(members, rule.drawn)
    cost = rule.cost
    if temperature > 0:
        return _by_chance([cost(m, need) for m in members], members, temperature)
    return min(members, key=lambda m: (cost(m, need), active(m, need), m.turn))


def _by_chance(costs: list[float], members: Sequence[Member], temperature: float) -> Member:
    """Softmax of the costs, scaled to 0 for the least and 1 for the most."""
    least = min(costs)
    spread = max(costs) - least or 1.0
    weights = [math.exp((least - cost) / spread / temperature) for cost in costs]
    return random.choices(members, weights)[0]
