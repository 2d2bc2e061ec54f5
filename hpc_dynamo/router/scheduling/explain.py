"""Why a request would go where it would go, for people."""

import msgspec

from hpc_dynamo.config import Policy, Role
from hpc_dynamo.router.scheduling.lease import Ask
from hpc_dynamo.router.scheduling.policy import POLICIES, Need
from hpc_dynamo.router.scheduling.selector import Choice, Chooser
from hpc_dynamo.router.scheduling.worker import Load, Member


class Considered(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, as the choice saw it. The least `cost` wins; equals take turns."""

    rank: int
    role: Role
    usable: bool  # it has room, is not avoided, and was not excluded
    chosen: bool
    cost: float
    overlap_blocks: int  # of the prompt's start that it has
    left_tokens: int  # of the prompt that it has not
    prefill_tokens: int  # promised to it and not computed yet
    blocks: int  # that our requests hold there
    active: int  # requests of ours
    others: Load  # what other heads have there


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """A decision. `why`: split, whole, or why the decode worker prefills: short, swamped;
    `waits` where nobody has room."""

    policy: Policy
    why: str
    tokens: int
    block_tokens: int
    overlap_weight: float
    recompute_weight: float
    decode_weight: float
    handover_tokens: float  # see router.handover
    prefill: int | None
    decode: int | None
    workers: tuple[Considered, ...]
    model: str = ""  # of several


def explain(chooser: Chooser, ask: Ask, members: tuple[Member, ...]) -> Why:
    """Raises like Chooser.choose."""
    choice, need = chooser.choose(ask, members), chooser.need(ask, chooser.hashes(ask))
    usable = {m.rank for role in chooser.roles(ask) for m in chooser.usable(role, ask, members)}
    cost = POLICIES[chooser.policy(ask)].cost
    return Why(
        model=ask.model,
        policy=chooser.policy(ask),
        why=choice.why if choice else "waits",
        tokens=need.tokens,
        block_tokens=need.block,
        overlap_weight=need.overlap_weight,
        recompute_weight=need.recompute_weight,
        decode_weight=need.decode_weight,
        handover_tokens=chooser.handover.tokens,
        prefill=choice.prefill.rank if choice and choice.prefill else None,
        decode=choice.decode.rank if choice else None,
        workers=tuple(
            _considered(m, need, cost(m, need), m.rank in usable, choice)
            for m in sorted(members, key=lambda m: m.rank)
        ),
    )


def _considered(
    m: Member, need: Need, cost: float, usable: bool, choice: Choice | None
) -> Considered:
    return Considered(
        rank=m.rank,
        role=m.role,
        usable=usable,
        chosen=choice is not None and m in choice.workers,
        cost=round(cost, 3),
        overlap_blocks=need.overlaps.get(m.rank, 0),
        left_tokens=need.left(m),
        prefill_tokens=m.prefill_tokens,
        blocks=m.blocks,
        active=m.active,
        others=m.others,
    )
