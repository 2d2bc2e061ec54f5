"""Pure choice among usable workers."""

from collections.abc import Callable, Mapping, Sequence

from hpc_dynamo.config import Policy
from hpc_dynamo.router.members import Member

Overlaps = Mapping[int, int]  # blocks of the prompt's start, by rank
Choose = Callable[[Sequence[Member], int, Overlaps, int], Member]
"""(usable workers, at least one; prompt tokens; overlaps; tokens a block) → the chosen one."""


def kv(members: Sequence[Member], tokens: int, overlaps: Overlaps, block: int) -> Member:
    """The least work ahead: prompt tokens to compute, here and promised, and blocks held,
    both counted in blocks (as in NVIDIA Dynamo's router cost, docs/router)."""

    def cost(m: Member) -> tuple[float, int, int]:
        left = max(tokens - overlaps.get(m.rank, 0) * block, 0)
        return ((left + m.prefill_tokens) / block + m.blocks, m.active, m.turn)

    return min(members, key=cost)


def least_loaded(members: Sequence[Member], tokens: int, overlaps: Overlaps, block: int) -> Member:
    """The fewest requests of ours."""
    return min(members, key=lambda m: (m.active, m.turn))


def round_robin(members: Sequence[Member], tokens: int, overlaps: Overlaps, block: int) -> Member:
    """The one whose last turn is the longest ago; counting turns instead would send a worker
    that joins late everything until it has caught up."""
    return min(members, key=lambda m: m.turn)


POLICIES: dict[Policy, Choose] = {
    Policy.kv: kv,
    Policy.least_loaded: least_loaded,
    Policy.round_robin: round_robin,
}
