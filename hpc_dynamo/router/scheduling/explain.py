"""Explains a routing decision (`/v1/route`)."""

import msgspec

from hpc_dynamo.config import Policy, Role
from hpc_dynamo.router.scheduling.lease import RoutingRequest
from hpc_dynamo.router.scheduling.policy import POLICIES, CostInputs
from hpc_dynamo.router.scheduling.selector import Selection, WorkerSelector
from hpc_dynamo.router.scheduling.worker import RoutedWorker, RoutingTarget, WorkerDemand


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One target in a decision. The lowest `cost` is selected; ties go to the least recent."""

    rank: int
    role: Role
    usable: bool  # it has room, is not avoided, and is not excluded
    chosen: bool
    cost: float
    overlap_blocks: int  # prompt blocks that are cached there
    left_tokens: int  # prompt tokens that are not cached there, and `load_tokens`
    load_tokens: float  # cost of cached blocks in lower tiers, see router.tier_cost
    prefill_tokens: int  # placed there and not yet computed
    blocks: int  # KV blocks of this head's requests
    active: int  # requests of this head
    others: WorkerDemand  # load placed by other heads
    dp_rank: int | None = None  # data-parallel rank of the worker


class RoutingExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """A decision and its inputs. `reason` is that of Selection, or "queued" without a worker."""

    policy: Policy
    reason: str
    tokens: int
    block_tokens: int
    overlap_weight: float
    recompute_weight: float
    decode_weight: float
    handover_tokens: float  # see TransferCost
    prefill: int | None
    decode: int | None
    # Data-parallel ranks of the two; None: the worker has one, or its engine selects it.
    prefill_dp_rank: int | None
    decode_dp_rank: int | None
    workers: tuple[Candidate, ...]
    model: str = ""  # if there are several


def explain(
    selector: WorkerSelector, request: RoutingRequest, workers: tuple[RoutedWorker, ...]
) -> RoutingExplanation:
    """Return the decision that would be made now. Raises like WorkerSelector.select."""
    selection = selector.select(request, workers)
    inputs = selector.cost_inputs(request, selector.hashes(request))
    roles = selector.required_roles(request)
    usable = {t.key for role in roles for t in selector.usable(role, request, workers)}
    policy = selector.policy(request)
    cost = POLICIES[policy].cost
    return RoutingExplanation(
        model=request.model,
        policy=policy,
        reason=selection.reason if selection else "queued",
        tokens=inputs.prompt_tokens,
        block_tokens=inputs.block_tokens,
        overlap_weight=inputs.overlap_weight,
        recompute_weight=inputs.recompute_weight,
        decode_weight=inputs.decode_weight,
        handover_tokens=selector.transfer_cost.tokens,
        prefill=selection.prefill.worker.rank if selection and selection.prefill else None,
        decode=selection.decode.worker.rank if selection else None,
        prefill_dp_rank=selection.prefill.dp_rank if selection and selection.prefill else None,
        decode_dp_rank=selection.decode.dp_rank if selection else None,
        workers=tuple(
            _candidate(t, inputs, cost(t, inputs), t.key in usable, selection)
            for w in sorted(workers, key=lambda w: w.rank)
            for t in w.targets
        ),
    )


def _candidate(
    target: RoutingTarget,
    inputs: CostInputs,
    cost: float,
    usable: bool,
    selection: Selection | None,
) -> Candidate:
    return Candidate(
        rank=target.worker.rank,
        dp_rank=target.dp_rank,
        role=target.worker.role,
        usable=usable,
        chosen=selection is not None and target in selection.targets,
        cost=round(cost, 3),
        overlap_blocks=inputs.overlaps.get(target.key, 0),
        left_tokens=inputs.uncached_tokens(target),
        load_tokens=inputs.load_tokens.get(target.key, 0.0),
        prefill_tokens=target.prefill_tokens,
        blocks=target.blocks,
        active=target.active,
        others=target.peer_load,
    )
