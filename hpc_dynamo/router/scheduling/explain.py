"""Why a request would go where it would go, for people."""

import msgspec

from hpc_dynamo.config import Policy, Role
from hpc_dynamo.router.scheduling.lease import RoutingRequest
from hpc_dynamo.router.scheduling.policy import POLICIES, CostInputs
from hpc_dynamo.router.scheduling.selector import Selection, WorkerSelector
from hpc_dynamo.router.scheduling.worker import RoutedWorker, WorkerDemand


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
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
    others: WorkerDemand  # what other heads have there


class RoutingExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """A decision. `why`: split, whole, or why the decode worker prefills: short, swamped;
    `waits` where nobody has room."""

    policy: Policy
    reason: str
    tokens: int
    block_tokens: int
    overlap_weight: float
    recompute_weight: float
    decode_weight: float
    handover_tokens: float  # see router.handover
    prefill: int | None
    decode: int | None
    workers: tuple[Candidate, ...]
    model: str = ""  # of several


def explain(
    chooser: WorkerSelector, ask: RoutingRequest, members: tuple[RoutedWorker, ...]
) -> RoutingExplanation:
    """Raises like Chooser.choose."""
    choice, need = chooser.select(ask, members), chooser.cost_inputs(ask, chooser.hashes(ask))
    usable = {
        m.rank for role in chooser.required_roles(ask) for m in chooser.usable(role, ask, members)
    }
    cost = POLICIES[chooser.policy(ask)].cost
    return RoutingExplanation(
        model=ask.model,
        policy=chooser.policy(ask),
        reason=choice.reason if choice else "queued",
        tokens=need.prompt_tokens,
        block_tokens=need.block_tokens,
        overlap_weight=need.overlap_weight,
        recompute_weight=need.recompute_weight,
        decode_weight=need.decode_weight,
        handover_tokens=chooser.transfer_cost.tokens,
        prefill=choice.prefill.rank if choice and choice.prefill else None,
        decode=choice.decode.rank if choice else None,
        workers=tuple(
            _candidate(m, need, cost(m, need), m.rank in usable, choice)
            for m in sorted(members, key=lambda m: m.rank)
        ),
    )


def _candidate(
    m: RoutedWorker, need: CostInputs, cost: float, usable: bool, choice: Selection | None
) -> Candidate:
    return Candidate(
        rank=m.rank,
        role=m.role,
        usable=usable,
        chosen=choice is not None and m in choice.workers,
        cost=round(cost, 3),
        overlap_blocks=need.overlaps.get(m.rank, 0),
        left_tokens=need.uncached_tokens(m),
        prefill_tokens=m.prefill_tokens,
        blocks=m.blocks,
        active=m.active,
        others=m.peer_load,
    )
