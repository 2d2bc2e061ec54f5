"""Which workers a request gets: the usable ones, the policy, and whether a split pays."""

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
from hpc_dynamo.router.scheduling.policy import POLICIES, CostInputs, select_worker
from hpc_dynamo.router.scheduling.transfer_cost import TransferCost
from hpc_dynamo.router.scheduling.worker import RoutedWorker


@dataclass(frozen=True, slots=True)
class Selection:
    """The workers of one request. `why` they are two or one: split, whole, short, swamped."""

    decode: RoutedWorker
    prefill: RoutedWorker | None
    uncached_tokens: int  # tokens of the prompt to compute
    overlap_blocks: int  # blocks of it that are there
    hashes: list[int]  # of its blocks, where the policy looks at them
    policy: Policy
    reason: str

    @property
    def prompt_worker(self) -> RoutedWorker:
        return self.prefill or self.decode

    @property
    def decode_target(self) -> Target:
        return Target(self.decode.rank, self.decode.url)

    @property
    def prefill_target(self) -> Target | None:
        return Target(self.prefill.rank, self.prefill.url) if self.prefill else None

    @property
    def workers(self) -> tuple[RoutedWorker, ...]:
        return (self.decode, self.prefill) if self.prefill else (self.decode,)


class WorkerSelector:
    """Chooses, and changes nothing."""

    def __init__(
        self, kind: TopologyKind, config: c.Router, limits: AdmissionLimits, caches: KvState
    ) -> None:
        self._disaggregated, self._config = kind is TopologyKind.disaggregated, config
        self.limits, self._kv_state = limits, caches
        self.transfer_cost = TransferCost(config.transfer_cost_tokens)
        self.failure = ""  # why no worker will ever come again

    def required_roles(self, ask: RoutingRequest) -> tuple[Role, ...]:
        """Of the workers that a request takes, the one that answers first."""
        if not self._disaggregated:
            return (Role.aggregated,)
        return (Role.decode, Role.prefill) if ask.may_disaggregate else (Role.decode,)

    def policy(self, ask: RoutingRequest) -> Policy:
        return ask.hints.policy or self._config.policy

    def hashes(self, ask: RoutingRequest) -> list[int]:
        return ask.hash_list if self.policy(ask) is Policy.kv else []

    def cost_inputs(self, ask: RoutingRequest, hashes: list[int]) -> CostInputs:
        wish, config = ask.hints, self._config
        return CostInputs(
            prompt_tokens=ask.prompt_tokens,
            overlaps=self._kv_state.overlaps(hashes) if hashes else {},
            block_tokens=config.block_tokens,
            overlap_weight=_value_or(wish.overlap_weight, config.overlap_weight),
            recompute_weight=config.recompute_weight,
            decode_weight=_value_or(wish.decode_weight, config.decode_weight),
            session=wish.session,
        )

    def select(self, ask: RoutingRequest, members: Iterable[RoutedWorker]) -> Selection | None:
        """None where nobody has room now.

        Raises Exhausted where all were tried, NoSuchWorker where those named are not there,
        NoWorker where none will ever come.
        """
        if self.failure:
            raise NoWorker(self.failure)
        policy, here = self.policy(ask), tuple(members)
        if policy is Policy.direct and not ask.hints.workers:
            raise NoSuchWorker("router.policy=direct: X-Worker-Rank must name a worker")
        hashes = self.hashes(ask)
        need = self.cost_inputs(ask, hashes)
        picked = [self._select_for_role(role, ask, here, need) for role in self.required_roles(ask)]
        decode = picked[0]
        if decode is None:
            return None
        why = self._reason(ask, here, need, decode, picked[-1]) if len(picked) > 1 else "aggregated"
        if not why:
            return None
        prefill = picked[-1] if why == "disaggregated" else None
        computes = prefill or decode
        overlap = need.overlaps.get(computes.rank, 0)
        return Selection(
            decode, prefill, need.uncached_tokens(computes), overlap, hashes, policy, why
        )

    def _select_for_role(
        self, role: Role, ask: RoutingRequest, here: Sequence[RoutedWorker], need: CostInputs
    ) -> RoutedWorker | None:
        usable = self.usable(role, ask, here)
        if not usable:
            return None
        temperature = _value_or(ask.hints.temperature, self._config.temperature)
        return select_worker(POLICIES[self.policy(ask)], usable, need, temperature)

    def usable(
        self, role: Role, ask: RoutingRequest, here: Sequence[RoutedWorker]
    ) -> list[RoutedWorker]:
        """The workers of a role with room. Raises like `choose`."""
        of_role = [m for m in _named(ask.hints.workers, role, here) if not m.draining]
        untried = [m for m in of_role if m.rank not in ask.exclude]
        if of_role and not untried:
            raise AllWorkersTried(f"every {role} worker was tried")
        return [m for m in untried if self.limits.has_room(m, len(of_role))]

    def _reason(
        self,
        ask: RoutingRequest,
        here: Sequence[RoutedWorker],
        need: CostInputs,
        decode: RoutedWorker,
        prefill: RoutedWorker | None,
    ) -> str:
        """`split`, or why the decode worker computes the prompt as well; empty: it must wait.

        A hand-over takes as long as computing so many tokens (Handover), a prompt computed
        beside streams holds these up (router.decode_prefill_penalty).
        """
        if not (self._config.conditional_disaggregation and ask.prompt_tokens):
            return "disaggregated" if prefill else ""
        if prefill is None:
            return "local_prefill_busy" if any(m.role is Role.prefill for m in here) else ""
        local = self._config.decode_prefill_penalty * (
            need.uncached_tokens(decode) + decode.queued_prefill_tokens
        )
        alone = need.uncached_tokens(prefill) + self.transfer_cost.tokens
        if local < alone:
            return "local_short_prompt"
        return (
            "local_prefill_busy"
            if local < alone + prefill.queued_prefill_tokens
            else "disaggregated"
        )


def _named(ranks: Sequence[int], role: Role, here: Sequence[RoutedWorker]) -> list[RoutedWorker]:
    """Of a role, those that a request wants; all, where it wants none of this role."""
    of_role = [m for m in here if m.role is role]
    if not ranks:
        return of_role
    missing = set(ranks) - {m.rank for m in here}
    if missing:
        known = ", ".join(str(m.rank) for m in here) or "none"
        raise NoSuchWorker(f"no worker {min(missing)} is ready; ready ones: {known}")
    return [m for m in of_role if m.rank in ranks] or of_role


def _value_or(wished: float | None, usual: float) -> float:
    return usual if wished is None else wished
