"""Which workers a request gets: the usable ones, the policy, and whether a split pays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpc_dynamo import config as c
from hpc_dynamo.config import Policy, Role, TopologyKind
from hpc_dynamo.router.index.kv_state import Caches
from hpc_dynamo.router.scheduling.lease import Ask, Exhausted, NoSuchWorker, NoWorker, Target
from hpc_dynamo.router.scheduling.limits import Limits
from hpc_dynamo.router.scheduling.policy import POLICIES, Need, choose
from hpc_dynamo.router.scheduling.transfer_cost import Handover
from hpc_dynamo.router.scheduling.worker import Member


@dataclass(frozen=True, slots=True)
class Choice:
    """The workers of one request. `why` they are two or one: split, whole, short, swamped."""

    decode: Member
    prefill: Member | None
    left: int  # tokens of the prompt to compute
    overlap: int  # blocks of it that are there
    hashes: list[int]  # of its blocks, where the policy looks at them
    policy: Policy
    why: str

    @property
    def computes(self) -> Member:
        return self.prefill or self.decode

    @property
    def decode_target(self) -> Target:
        return Target(self.decode.rank, self.decode.url)

    @property
    def prefill_target(self) -> Target | None:
        return Target(self.prefill.rank, self.prefill.url) if self.prefill else None

    @property
    def workers(self) -> tuple[Member, ...]:
        return (self.decode, self.prefill) if self.prefill else (self.decode,)


class Chooser:
    """Chooses, and changes nothing."""

    def __init__(
        self, kind: TopologyKind, config: c.Router, limits: Limits, caches: Caches
    ) -> None:
        self._split, self._config = kind is TopologyKind.disaggregated, config
        self.limits, self._caches = limits, caches
        self.handover = Handover(config.transfer_cost_tokens)
        self.lost = ""  # why no worker will ever come again

    def roles(self, ask: Ask) -> tuple[Role, ...]:
        """Of the workers that a request takes, the one that answers first."""
        if not self._split:
            return (Role.aggregated,)
        return (Role.decode, Role.prefill) if ask.split else (Role.decode,)

    def policy(self, ask: Ask) -> Policy:
        return ask.wish.policy or self._config.policy

    def hashes(self, ask: Ask) -> list[int]:
        return ask.blocks if self.policy(ask) is Policy.kv else []

    def need(self, ask: Ask, hashes: list[int]) -> Need:
        wish, config = ask.wish, self._config
        return Need(
            tokens=ask.tokens,
            overlaps=self._caches.overlaps(hashes) if hashes else {},
            block=config.block_tokens,
            overlap_weight=_or(wish.overlap_weight, config.overlap_weight),
            recompute_weight=config.recompute_weight,
            decode_weight=_or(wish.decode_weight, config.decode_weight),
            session=wish.session,
        )

    def choose(self, ask: Ask, members: Iterable[Member]) -> Choice | None:
        """None where nobody has room now.

        Raises Exhausted where all were tried, NoSuchWorker where those named are not there,
        NoWorker where none will ever come.
        """
        if self.lost:
            raise NoWorker(self.lost)
        policy, here = self.policy(ask), tuple(members)
        if policy is Policy.direct and not ask.wish.workers:
            raise NoSuchWorker("router.policy=direct: X-Worker-Rank must name a worker")
        hashes = self.hashes(ask)
        need = self.need(ask, hashes)
        picked = [self._pick(role, ask, here, need) for role in self.roles(ask)]
        decode = picked[0]
        if decode is None:
            return None
        why = self._why(ask, here, need, decode, picked[-1]) if len(picked) > 1 else "whole"
        if not why:
            return None
        prefill = picked[-1] if why == "split" else None
        computes = prefill or decode
        overlap = need.overlaps.get(computes.rank, 0)
        return Choice(decode, prefill, need.left(computes), overlap, hashes, policy, why)

    def _pick(self, role: Role, ask: Ask, here: Sequence[Member], need: Need) -> Member | None:
        usable = self.usable(role, ask, here)
        if not usable:
            return None
        temperature = _or(ask.wish.temperature, self._config.temperature)
        return choose(POLICIES[self.policy(ask)], usable, need, temperature)

    def usable(self, role: Role, ask: Ask, here: Sequence[Member]) -> list[Member]:
        """The workers of a role with room. Raises like `choose`."""
        of_role = [m for m in _named(ask.wish.workers, role, here) if not m.aside]
        untried = [m for m in of_role if m.rank not in ask.exclude]
        if of_role and not untried:
            raise Exhausted(f"every {role} worker was tried")
        return [m for m in untried if self.limits.room(m, len(of_role))]

    def _why(
        self, ask: Ask, here: Sequence[Member], need: Need, decode: Member, prefill: Member | None
    ) -> str:
        """`split`, or why the decode worker computes the prompt as well; empty: it must wait.

        A hand-over takes as long as computing so many tokens (Handover), a prompt computed
        beside streams holds these up (router.decode_prefill_penalty).
        """
        if not (self._config.conditional_disaggregation and ask.tokens):
            return "split" if prefill else ""
        if prefill is None:
            return "swamped" if any(m.role is Role.prefill for m in here) else ""
        local = self._config.decode_prefill_penalty * (need.left(decode) + decode.ahead_tokens)
        alone = need.left(prefill) + self.handover.tokens
        if local < alone:
            return "short"
        return "swamped" if local < alone + prefill.ahead_tokens else "split"


def _named(ranks: Sequence[int], role: Role, here: Sequence[Member]) -> list[Member]:
    """Of a role, those that a request wants; all, where it wants none of this role."""
    of_role = [m for m in here if m.role is role]
    if not ranks:
        return of_role
    missing = set(ranks) - {m.rank for m in here}
    if missing:
        known = ", ".join(str(m.rank) for m in here) or "none"
        raise NoSuchWorker(f"no worker {min(missing)} is ready; ready ones: {known}")
    return [m for m in of_role if m.rank in ranks] or of_role


def _or(wished: float | None, usual: float) -> float:
    return usual if wished is None else wished
