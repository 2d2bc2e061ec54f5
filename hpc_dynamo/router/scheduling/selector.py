"""Selects the targets of a request, and decides if prefill and decode run on separate workers.

A target is a worker, or one data-parallel rank of a worker.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpc_dynamo import config as c
from hpc_dynamo.config import Policy, Role, TopologyKind
from hpc_dynamo.router.index.kv_state import KvState
from hpc_dynamo.router.scheduling.lease import (
    AllWorkersTried,
    NoSuchWorker,
    NoWorker,
    RoutingRequest,
    Target,
)
from hpc_dynamo.router.scheduling.limits import AdmissionLimits
from hpc_dynamo.router.scheduling.policy import POLICIES, CostInputs, select_target
from hpc_dynamo.router.scheduling.transfer_cost import TransferCost
from hpc_dynamo.router.scheduling.worker import RoutedWorker, RoutingTarget

AGGREGATED, DISAGGREGATED = "aggregated", "disaggregated"
# Reasons for computing the prompt on the decode worker of a disaggregated topology.
LOCAL_SHORT_PROMPT, LOCAL_PREFILL_BUSY = "local_short_prompt", "local_prefill_busy"


@dataclass(frozen=True, slots=True)
class Selection:
    """The targets of one request. `reason` is one of the four constants above."""

    decode: RoutingTarget
    prefill: RoutingTarget | None  # None: the decode target computes the prompt
    uncached_tokens: int  # prompt tokens to compute
    overlap_blocks: int  # prompt blocks cached on the target that computes the prompt
    hashes: list[int]  # prompt blocks; empty unless the policy is kv
    policy: Policy
    reason: str
    confirmable_blocks: int = -1  # see RoutingRequest

    @property
    def prompt_target(self) -> RoutingTarget:
        return self.prefill or self.decode

    @property
    def leased_decode(self) -> Target:
        return _leased(self.decode)

    @property
    def leased_prefill(self) -> Target | None:
        return _leased(self.prefill) if self.prefill else None

    @property
    def targets(self) -> tuple[RoutingTarget, ...]:
        return (self.decode, self.prefill) if self.prefill else (self.decode,)


def _leased(target: RoutingTarget) -> Target:
    worker = target.worker
    if target.dp_rank is None:
        return Target(worker.rank, worker.url)
    return Target(worker.rank, worker.url, target.dp_rank, worker.ranks)


class WorkerSelector:
    """Selects targets without changing any state."""

    def __init__(
        self, kind: TopologyKind, config: c.Router, limits: AdmissionLimits, kv_state: KvState
    ) -> None:
        self._disaggregated, self._config = kind is TopologyKind.disaggregated, config
        self.limits, self._kv_state = limits, kv_state
        self.transfer_cost = TransferCost(config.transfer_cost_tokens)
        self.failure = ""  # why no request can be served any more

    def required_roles(self, request: RoutingRequest) -> tuple[Role, ...]:
        """Return the roles that a request needs; the one that generates the response is first."""
        if not self._disaggregated:
            return (Role.aggregated,)
        return (Role.decode, Role.prefill) if request.may_disaggregate else (Role.decode,)

    def policy(self, request: RoutingRequest) -> Policy:
        return request.hints.policy or self._config.policy

    def hashes(self, request: RoutingRequest) -> list[int]:
        return request.hash_list if self.policy(request) is Policy.kv else []

    def cost_inputs(self, request: RoutingRequest, hashes: list[int]) -> CostInputs:
        """Return the inputs of the cost functions; routing hints override the configuration."""
        hints, config = request.hints, self._config
        overlaps = self._kv_state.overlaps(hashes) if hashes else {}
        return CostInputs(
            prompt_tokens=request.prompt_tokens,
            overlaps=overlaps,
            load_tokens=self._kv_state.load_tokens(hashes, overlaps),
            block_tokens=config.block_tokens,
            overlap_weight=_value_or(hints.overlap_weight, config.overlap_weight),
            recompute_weight=config.recompute_weight,
            decode_weight=_value_or(hints.decode_weight, config.decode_weight),
            session=hints.session,
        )

    def select(self, request: RoutingRequest, workers: Iterable[RoutedWorker]) -> Selection | None:
        """Return the best targets with room now, or None if the request must wait.

        Raises AllWorkersTried, NoSuchWorker for hints that name unknown workers, and NoWorker
        after a permanent failure.
        """
        if self.failure:
            raise NoWorker(self.failure)
        policy, present = self.policy(request), tuple(workers)
        if policy is Policy.direct and not request.hints.workers:
            raise NoSuchWorker("router.policy=direct: X-Worker-Rank must name a worker")
        roles = self.required_roles(request)
        usable = [self.usable(role, request, present) for role in roles]
        if not usable[0]:
            return None  # before the hashes: a queued request may be tried often
        hashes = self.hashes(request)
        inputs = self.cost_inputs(request, hashes)
        decode = self._cheapest(request, usable[0], inputs)
        prefill = self._cheapest(request, usable[-1], inputs) if usable[-1] else None
        reason = AGGREGATED
        if len(roles) > 1:
            reason = self._reason(request, present, inputs, decode, prefill)
        if not reason:
            return None
        prefill = prefill if reason == DISAGGREGATED else None
        target = prefill or decode
        uncached, overlap = inputs.uncached_tokens(target), inputs.overlaps.get(target.key, 0)
        end = request.confirmable_blocks
        return Selection(decode, prefill, uncached, overlap, hashes, policy, reason, end)

    def _cheapest(
        self, request: RoutingRequest, usable: Sequence[RoutingTarget], inputs: CostInputs
    ) -> RoutingTarget:
        temperature = _value_or(request.hints.temperature, self._config.temperature)
        return select_target(POLICIES[self.policy(request)], usable, inputs, temperature)

    def usable(
        self, role: Role, request: RoutingRequest, workers: Sequence[RoutedWorker]
    ) -> list[RoutingTarget]:
        """Return the targets of a role that have room. Raises like `select`."""
        in_role = [w for w in _named(request.hints.workers, role, workers) if not w.draining]
        untried = [w for w in in_role if w.rank not in request.exclude]
        if in_role and not untried:
            raise AllWorkersTried(f"every {role} worker was tried")
        limits, limit = self.limits, self.limits.max_requests(role, len(in_role))
        present = [t for w in untried if not w.avoid_count for t in w.targets]
        return [t for t in present if limits.has_room(t, limit)]

    def _reason(
        self,
        request: RoutingRequest,
        workers: Sequence[RoutedWorker],
        inputs: CostInputs,
        decode: RoutingTarget,
        prefill: RoutingTarget | None,
    ) -> str:
        """Return why the prompt is computed on the prefill or the decode worker; "" to wait.

        Compares two times, both in prompt tokens. On the decode worker the prompt delays other
        responses (router.decode_prefill_penalty). The prefill worker adds a KV transfer.
        """
        if not (self._config.conditional_disaggregation and request.prompt_tokens):
            return DISAGGREGATED if prefill else ""
        if prefill is None:
            return LOCAL_PREFILL_BUSY if any(w.role is Role.prefill for w in workers) else ""
        tokens = inputs.uncached_tokens(decode) + decode.queued_prefill_tokens
        local = self._config.decode_prefill_penalty * tokens
        remote = inputs.uncached_tokens(prefill) + self.transfer_cost.tokens
        if local < remote:
            return LOCAL_SHORT_PROMPT
        busy = local < remote + prefill.queued_prefill_tokens
        return LOCAL_PREFILL_BUSY if busy else DISAGGREGATED


def _named(ranks: Sequence[int], role: Role, workers: Sequence[RoutedWorker]) -> list[RoutedWorker]:
    """Return the workers of a role that the hints name, or all of it if they name none."""
    in_role = [w for w in workers if w.role is role]
    if not ranks:
        return in_role
    missing = set(ranks) - {w.rank for w in workers}
    if missing:
        known = ", ".join(str(w.rank) for w in workers) or "none"
        raise NoSuchWorker(f"no worker {min(missing)} is ready; ready ones: {known}")
    return [w for w in in_role if w.rank in ranks] or in_role


def _value_or(hint: float | None, default: float) -> float:
    return default if hint is None else hint
